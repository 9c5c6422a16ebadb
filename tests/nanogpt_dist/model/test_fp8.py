"""Products in float8: nearly the same loss, the same names, and refused where they cannot be."""

import sys

import pytest
import torch

from nanogpt_dist.config import ModelConfig, resolve
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.model.fp8 import check_fp8, convert_to_fp8
from nanogpt_dist.model.gpt import GPT

SMALL = ModelConfig(block_size=32, vocab_size=64, n_layer=2, n_head=2, n_embd=64)
CUDA = torch.device("cuda")


def losses(fp8: bool) -> list[float]:
    """Of 30 steps over the same text."""
    with torch.device("meta"):
        model = GPT(SMALL)
        if fp8:
            convert_to_fp8(model.transformer.h, emulate=True)
    model.to_empty(device="cpu")
    model.tie().init_weights(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.randint(0, 64, (8, 33), generator=torch.Generator().manual_seed(2))
    found = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = model(ids[:, :-1], ids[:, 1:])
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_the_loss_is_nearly_that_of_bfloat16() -> None:
    pytest.importorskip("torchao")
    plain, fp8 = losses(False), losses(True)
    assert plain[-1] < plain[0] - 0.5  # it has learnt
    assert fp8 != plain
    assert fp8 == pytest.approx(plain, rel=0.05)


def test_weights_keep_names_and_type_and_embeddings_and_head_are_left_out() -> None:
    float8 = pytest.importorskip("torchao.float8.float8_linear").Float8Linear
    model, plain = GPT(SMALL), GPT(SMALL)
    convert_to_fp8(model.transformer.h, emulate=True)
    assert [(n, p.shape, p.dtype) for n, p in model.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in plain.named_parameters()
    ]
    converted = [name for name, module in model.named_modules() if isinstance(module, float8)]
    assert len(converted) == 4 * SMALL.n_layer
    assert all(name.startswith("transformer.h.") for name in converted)


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match=r"pip install 'nanogpt-dist\[fp8\]'"):
        convert_to_fp8(GPT(SMALL))


def test_what_has_no_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fp8(resolve({}), torch.device("cpu"))
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU, this is cpu: leave --fp8 out"):
        check_fp8(resolve({"fp8": True}), torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"capability 8\.9, this GPU has 8\.0"):
        check_fp8(resolve({"fp8": True}), CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_fp8(resolve({"fp8": True}), CUDA)
    with pytest.raises(ConfigError, match="goes with --dtype bfloat16, this is tf32"):
        check_fp8(resolve({"fp8": True, "dtype": "tf32"}), CUDA)
    with pytest.raises(ConfigError, match="multiples of 16, these are 24, 96, 24"):
        check_fp8(resolve({"fp8": True, "n_embd": 24, "n_head": 2}), CUDA)
