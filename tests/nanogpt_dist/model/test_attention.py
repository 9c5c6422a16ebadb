"""The implementations of attention: one signature, one result."""

import torch
from torch import Tensor

from nanogpt_dist.model.attention import (
    attention,
    cached_attention,
    cpu_attention,
    flex_attention,
    sdpa_attention,
)
from nanogpt_dist.model.positions import (
    causal_mask,
    document_block_mask,
    document_mask,
    window_block_mask,
)


def qkv(T: int = 40, heads_of_keys: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """q (2, 4, T, 8), k and v (2, heads_of_keys, T, 8)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, T, 8, generator=generator)
    return q, k[:, :heads_of_keys], v[:, :heads_of_keys]


def test_flex_attention_sees_the_same() -> None:
    """What CUDA uses; on a CPU it has no backward pass."""
    q, k, v = torch.randn(3, 2, 4, 128, 8, generator=torch.Generator().manual_seed(0))
    document = (torch.arange(128) % 41 == 0).cumsum(0).repeat(2, 1)
    with torch.no_grad():
        blocks = flex_attention(q, k[:, :2], v[:, :2], document_block_mask(document))
        plain = sdpa_attention(q, k[:, :2], v[:, :2], document_mask(document))
    torch.testing.assert_close(blocks, plain, rtol=1e-4, atol=1e-5)


def test_a_window_is_the_same_by_each_implementation() -> None:
    q, k, v = torch.randn(3, 2, 4, 128, 8, generator=torch.Generator().manual_seed(0))
    document = (torch.arange(128) % 41 == 0).cumsum(0).repeat(2, 1)
    for window in (1, 5, 130):
        at = torch.arange(128)
        band = (at[:, None] >= at) & (at[:, None] - at < window)
        assert torch.equal(causal_mask(128, window, q), band)
        expected = sdpa_attention(q, k, v, band)
        with torch.no_grad():
            blocks = window_block_mask(128, window, q.device)
            torch.testing.assert_close(flex_attention(q, k, v, blocks), expected)
            within = document_block_mask(document, window)
            torch.testing.assert_close(
                flex_attention(q, k, v, within),
                sdpa_attention(q, k, v, document_mask(document) & band),
            )
        torch.testing.assert_close(attention(q, k, v, None, 0.0, window), expected)
        assert torch.equal(document_mask(document, window), document_mask(document) & band)
        low = [x.bfloat16() for x in (q, k, v)]
        found = cpu_attention(*low, None, 0.0, window)
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_blocks_outside_of_a_window_are_skipped() -> None:
    blocks = window_block_mask(1024, 128, torch.device("cpu"))
    # of 8 × 8 blocks of 128 tokens, a query's own and the one before
    assert int((blocks.kv_num_blocks + blocks.full_kv_num_blocks).sum()) == 15


def test_a_mask_of_flex_attention_goes_to_flex_attention() -> None:
    q, k, v = qkv(128)
    mask = document_block_mask(torch.zeros(2, 128, dtype=torch.int64))
    with torch.no_grad():
        found, causal = attention(q, k, v, mask), attention(q, k, v, None)
    torch.testing.assert_close(found, causal, rtol=1e-4, atol=1e-5)


def test_the_cpu_kernel_gives_what_torchs_own_gives() -> None:
    q, k, v = (x.bfloat16() for x in qkv())
    assert not torch.equal(cpu_attention(q, k, v, None), sdpa_attention(q, k, v, None))
    torch.testing.assert_close(
        cpu_attention(q, k, v, None), sdpa_attention(q, k, v, None), rtol=0.02, atol=0.02
    )


def test_what_the_cpu_kernel_is_not_made_for_is_torchs_own() -> None:
    mask = document_mask((torch.arange(40) // 7).repeat(2, 1))
    q, k, v = (x.bfloat16() for x in qkv())
    grouped = tuple(x.bfloat16() for x in qkv(heads_of_keys=2))
    for inputs in ((*qkv(), None), (q, k, v, mask), (*grouped, None)):
        assert torch.equal(cpu_attention(*inputs), sdpa_attention(*inputs))


def test_a_query_over_a_cache_is_the_last_row_of_the_whole() -> None:
    for heads_of_keys in (4, 2):
        q, k, v = qkv(heads_of_keys=heads_of_keys)
        last = cached_attention(q[:, :, -1:], k, v, None)
        torch.testing.assert_close(last, sdpa_attention(q, k, v, None)[:, :, -1:])
