"""Each option of the model beside GPT-2, forward and backward, against the same token by token,
head by head.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt_dist.config import ModelConfig, TrainConfig, resolve
from nanogpt_dist.errors import ConfigError
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.inspect.architecture import count_parameters, trace
from nanogpt_dist.inspect.diagram_text import draw
from nanogpt_dist.model import cpu_elementwise
from nanogpt_dist.model.attention import attention, cpu_attention
from nanogpt_dist.model.cpu_kernels import linear_cross_entropy
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.model.kernels import TORCH_KERNELS, Kernels, has_plain_heads

SMALL: dict[str, Any] = {
    "block_size": 12,
    "vocab_size": 29,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
}
EOT = 7
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2 with biases": {"bias": True, "gelu": "tanh"},
    "rotary": {"rotary": True},
    "rotary base": {"rotary": True, "rotary_base": 100.0},
    "rmsnorm": {"norm": "rmsnorm"},
    "swiglu": {"mlp": "swiglu"},
    "squared relu": {"mlp": "relu2", "bias": True},
    "qk norm": {"qk_norm": True},
    "qk norm and rotary": {"qk_norm": True, "rotary": True},
    "grouped queries": {"n_kv_head": 2, "bias": True},
    "one head of keys": {"n_kv_head": 1},
    "untied head": {"tied_head": False},
    "norms without weights": {"norm_weights": False, "bias": True},
    "rmsnorm without weights": {"norm_weights": False, "norm": "rmsnorm"},
    "embedding norm": {"embedding_norm": True},
    "embedding norm without weights": {"embedding_norm": True, "norm_weights": False},
    "softcap": {"logit_softcap": 2.0},
    "residual scalars": {"residual_scalars": True},
    "smear": {"smear": True},
    "bigrams": {"bigram_rows": 29 * 29},
    "hashed bigrams": {"bigram_rows": 100, "embedding_norm": True},
    "value embeddings": {"value_embeddings": True},
    "value embeddings of a group": {"value_embeddings": True, "n_kv_head": 2},
    "tokens before, within documents": {
        **{"smear": True, "bigram_rows": 100, "intra_document": True, "eot_id": EOT}
    },
    "windows": {"sliding_window": 3, "window_pattern": "SL"},
    "windows of one token": {"sliding_window": 1, "window_pattern": "S", "rotary": True},
    "windows of documents": {
        **{"sliding_window": 2, "window_pattern": "S", "intra_document": True, "eot_id": EOT}
    },
    "windows as long as the context": {"sliding_window": 12},
    "documents": {"intra_document": True, "eot_id": EOT},
    "documents and rotary": {"intra_document": True, "eot_id": EOT, "rotary": True},
    "all": {
        **{
            "rotary": True,
            "norm": "rmsnorm",
            "mlp": "swiglu",
            "qk_norm": True,
            "n_kv_head": 2,
            "tied_head": False,
            "embedding_norm": True,
            "logit_softcap": 15.0,
            "residual_scalars": True,
            "smear": True,
            "bigram_rows": 100,
            "value_embeddings": True,
            "sliding_window": 3,
        },
        **{"intra_document": True, "eot_id": EOT},
    },
}
each = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def made(options: dict[str, Any], kernels: Kernels = TORCH_KERNELS) -> GPT:
    """With all values drawn, also the gains and biases that begin as ones and zeros."""
    model = GPT(ModelConfig(**{**SMALL, **options}), kernels=kernels).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3, generator=generator)
    return model


def some_ids() -> Tensor:
    ids = torch.randint(29, (2, 12), generator=torch.Generator().manual_seed(2))
    ids[0, 4] = ids[0, 9] = ids[1, 0] = EOT
    return ids


def hashed(before: int, token: int, config: ModelConfig) -> int:
    """A pair's row of the bigram table: its own where there are enough."""
    rows, V = config.bigram_rows, config.vocab_size
    assert rows is not None
    assert V is not None
    if rows >= V * V:
        return before * V + token
    mixed = (before * 2_654_435_761 + token * 2_246_822_519) % 2**32
    mixed = (mixed ^ mixed >> 15) * 2_246_822_519 % 2**32
    return mixed * rows // 2**32


def slow_logits(model: GPT, ids: list[int]) -> Tensor:
    """(T, V) of one sequence, from the model's weights, after the papers, one token at a time."""
    c, at = model.config, dict(model.named_parameters())
    H, K, D = c.n_head, c.kv_heads, c.n_embd // c.n_head

    def linear(x: Tensor, name: str) -> Tensor:
        bias = at.get(f"{name}.bias")
        rows = [(row * x).sum() for row in at[f"{name}.weight"]]
        return torch.stack(rows) + (bias if bias is not None else 0)

    def rms(x: Tensor, gain: Tensor | int) -> Tensor:
        return x / torch.sqrt((x * x).mean() + 1e-5) * gain

    def norm(x: Tensor, name: str) -> Tensor:
        gain = at[f"{name}.weight"] if c.norm_weights else 1
        if c.norm == "rmsnorm":
            return rms(x, gain)
        centred = x - x.mean()
        y = centred / torch.sqrt((centred * centred).mean() + 1e-5) * gain
        return y + at[f"{name}.bias"] if c.bias and c.norm_weights else y

    def turned(x: Tensor, position: int) -> Tensor:
        """Each pair (i, i + D/2) is a complex number, multiplied by exp(i · position ·
        base^(−2i/D)).
        """
        turned = list(x)
        for i in range(D // 2):
            angle = position * c.rotary_base ** (-2 * i / D)
            a, b = x[i], x[i + D // 2]
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[i + D // 2] = a * math.sin(angle) + b * math.cos(angle)
        return torch.stack(turned)

    def feed_forward(x: Tensor, name: str) -> Tensor:
        h = linear(x, f"{name}.c_fc")
        if c.mlp == "swiglu":
            gate, value = h[: len(h) // 2], h[len(h) // 2 :]
            h = gate / (1 + torch.exp(-gate)) * value
        elif c.mlp == "relu2":
            h = torch.where(h > 0, h * h, 0)
        elif c.gelu == "tanh":
            h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        else:
            h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        return linear(h, f"{name}.c_proj")

    document, position = [], []
    for t, token in enumerate(ids):
        begins = c.intra_document and token == c.eot_id
        document.append((document[-1] if t else 0) + begins)
        position.append(0 if begins or not t else position[-1] + 1)

    stream = [at["transformer.wte.weight"][token] for token in ids]
    if not c.rotary:
        stream = [
            x + at["transformer.wpe.weight"][p] for x, p in zip(stream, position, strict=True)
        ]
    if c.bigram_rows is not None:
        rows = [hashed(ids[t - 1] if p else 0, ids[t], c) for t, p in enumerate(position)]
        stream = [
            x + at["transformer.bigram.weight"][row] for x, row in zip(stream, rows, strict=True)
        ]
    if c.embedding_norm:
        stream = [norm(x, "transformer.ln_emb") for x in stream]
    if c.smear:
        gate, scale = at["transformer.smear.gate"], at["transformer.smear.scale"]
        open_by = [scale / (1 + torch.exp(-(x[: len(gate)] * gate).sum())) for x in stream]
        stream = [
            x + open_by[t] * stream[t - 1] if position[t] else x for t, x in enumerate(stream)
        ]
    first = stream
    for layer in range(c.n_layer):
        block = f"transformer.h.{layer}"
        if c.residual_scalars:
            a, b = (at[f"{block}.residual.{name}_scale"] for name in ("x", "x0"))
            stream = [a * x + b * x0 for x, x0 in zip(stream, first, strict=True)]
        queries, keys, values = [], [], []
        for token, x, p in zip(ids, stream, position, strict=True):
            qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").view(H + 2 * K, D)
            q, k, v = list(qkv[:H]), list(qkv[H : H + K]), list(qkv[H + K :])
            if c.qk_norm:
                q = [rms(one, at[f"{block}.attn.q_norm.weight"]) for one in q]
                k = [rms(one, at[f"{block}.attn.k_norm.weight"]) for one in k]
            if c.value_embeddings and (c.n_layer - 1 - layer) % 2 == 0:
                name = f"{block}.attn.value_embedding"
                row = (at[f"{name}.weight"][token] * at[f"{name}.scale"]).view(K, D)
                v = [one + more for one, more in zip(v, row, strict=True)]
            if c.rotary:
                q, k = [turned(one, p) for one in q], [turned(one, p) for one in k]
            queries.append(q), keys.append(k), values.append(v)
        after = []
        for t, x in enumerate(stream):
            heads = []
            for h in range(H):
                group = h * K // H
                seen = [s for s in range(t + 1) if document[s] == document[t]]
                short = c.window_pattern[layer % len(c.window_pattern)] == "S"
                if c.sliding_window is not None and short and layer != c.n_layer - 1:
                    seen = [s for s in seen if s > t - c.sliding_window]
                scores = torch.stack(
                    [(queries[t][h] * keys[s][group]).sum() / math.sqrt(D) for s in seen]
                )
                weights = torch.exp(scores) / torch.exp(scores).sum()
                heads.append(sum(w * values[s][group] for w, s in zip(weights, seen, strict=True)))
            x = x + linear(torch.cat(heads), f"{block}.attn.c_proj")
            after.append(x + feed_forward(norm(x, f"{block}.ln_2"), f"{block}.mlp"))
        stream = after
    head = at["transformer.wte.weight"] if c.tied_head else at["lm_head.weight"]
    logits = torch.stack([head @ norm(x, "transformer.ln_f") for x in stream])
    cap = c.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@each
def test_forward_and_backward_are_those_of_the_plain_reference(options: dict[str, Any]) -> None:
    model, ids = made(options), some_ids()
    slow = torch.stack([slow_logits(model, row) for row in ids.tolist()])  # (B, T, V)
    torch.testing.assert_close(model.logits(ids), slow, rtol=1e-4, atol=1e-5)

    weights, targets = dict(model.named_parameters()), ids.roll(1, 1)
    wanted = torch.autograd.grad(
        -slow.log_softmax(-1).gather(2, targets[..., None]).mean(),
        list(weights.values()),
        allow_unused=True,
    )
    _, loss = model(ids, targets)
    assert loss is not None
    loss.backward()
    for (name, weight), gradient in zip(weights.items(), wanted, strict=True):
        gradient = torch.zeros_like(weight) if gradient is None else gradient
        assert weight.grad is not None, name
        torch.testing.assert_close(
            weight.grad, gradient, rtol=1e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def plain_gpt2(model: GPT, idx: Tensor) -> Tensor:
    """GPT-2's forward pass as one chain of torch's functions, as it was before there were
    options.
    """
    c, at = model.config, dict(model.named_parameters())

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, at[f"{name}.weight"], at.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (c.n_embd,), at[f"{name}.weight"], at.get(f"{name}.bias"), 1e-5)

    B, T = idx.shape
    x = F.embedding(idx, at["transformer.wte.weight"]) + F.embedding(
        torch.arange(T), at["transformer.wpe.weight"]
    )
    for i in range(c.n_layer):
        h = f"transformer.h.{i}"
        q, k, v = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(c.n_embd, dim=2)
        q, k, v = (t.view(B, T, c.n_head, -1).transpose(1, 2) for t in (q, k, v))
        y = (
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
            .transpose(1, 2)
            .reshape(B, T, c.n_embd)
        )
        x = x + linear(y, f"{h}.attn.c_proj")
        up = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        x = x + linear(
            F.gelu(up, approximate="tanh" if c.gelu == "tanh" else "none"), f"{h}.mlp.c_proj"
        )
    return F.linear(norm(x, "transformer.ln_f"), at["transformer.wte.weight"])


@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "gelu": "tanh"}], ids=["nanoGPT's", "OpenAI's"]
)
def test_without_options_every_bit_is_that_of_plain_gpt2(options: dict[str, Any]) -> None:
    model, ids = made(options), some_ids()
    parameters = list(model.parameters())
    ours, plain = model.logits(ids), plain_gpt2(model, ids)
    assert torch.equal(ours, plain)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(plain.square().sum(), parameters),
        strict=True,
    ):
        assert torch.equal(a, b)


@each
def test_decoding_with_a_cache_gives_the_models_logits(options: dict[str, Any]) -> None:
    model = made(options)
    ids = [[3, 5, 6, 2, 9, 1, 20, 11], [4, 8, 15]]
    decoder = Decoder(model, 29)
    logits = decoder.start([row[:-2] for row in ids], max_new_tokens=4)
    for ahead in (2, 1):
        for row, got in zip(ids, logits, strict=True):
            torch.testing.assert_close(
                got, model.logits(torch.tensor([row[:-ahead]]))[0, -1], rtol=1e-4, atol=1e-5
            )
        logits = decoder.next(torch.tensor([row[-ahead] for row in ids]))


@each
def test_counts_traces_and_drawings_follow(options: dict[str, Any]) -> None:
    config = resolve({**SMALL, **options})
    model, counted = GPT(config.architecture()), count_parameters(config)
    assert (
        counted.total
        == sum(p.numel() for p in model.parameters())
        == sum(counted.by_component.values())
    )
    assert (counted.by_component["lm_head"] > 0) is not config.tied_head
    assert ("wpe" in counted.by_component) is not config.rotary
    components = trace(config, config.batch_size)  # compares letters and sizes
    assert max(map(len, draw(config, counted, components).splitlines())) <= 100


@pytest.mark.parametrize(
    "options",
    [OPTIONS["documents"], OPTIONS["tokens before, within documents"], OPTIONS["all"]],
    ids=["documents", "tokens before", "all"],
)
def test_a_document_does_not_see_the_one_before(options: dict[str, Any]) -> None:
    """Whatever stands in document A, the logits of document B are the same, to the bit."""
    model, ids = made(options), some_ids()[:1]
    first, second = slice(0, 4), slice(4, 12)  # B begins with the end of text that ends A
    before = model.logits(ids)
    for seed in range(10, 18):
        edited = ids.clone()
        edited[0, first] = torch.randint(29, (4,), generator=torch.Generator().manual_seed(seed))
        after = model.logits(edited)
        assert torch.equal(after[:, second], before[:, second])
        assert not torch.equal(after[:, first], before[:, first])
    alone = model.logits(ids[:, 4:9])  # and they are those that it has by itself
    torch.testing.assert_close(before[:, 4:9], alone, rtol=1e-4, atol=1e-5)


def test_without_the_option_it_does() -> None:
    model, ids = made({}), some_ids()[:1]
    edited = ids.clone()
    edited[0, 0] += 1
    assert not torch.equal(model.logits(edited)[:, 4:], model.logits(ids)[:, 4:])


@each
def test_training_made_for_cpus_takes_the_options_too(options: dict[str, Any]) -> None:
    plain_heads = has_plain_heads(ModelConfig(**{**SMALL, **options}))
    kernels = Kernels(
        cpu_attention if plain_heads else attention,
        linear_cross_entropy,
        cpu_elementwise.rotate,
        cpu_elementwise.squared_relu,
    )
    plain, fast = made(options), made(options, kernels)
    ids = some_ids()
    for model in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = model(ids, ids.roll(1, 1))
        assert loss is not None
        loss.backward()
    norm = math.sqrt(
        sum(float((p.grad**2).sum()) for p in plain.parameters() if p.grad is not None)
    )
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert float((ours.grad - theirs.grad).norm()) < 0.05 * norm, name


def test_block_sizes_above_1024() -> None:
    model = GPT(ModelConfig(**{**SMALL, "block_size": 1600, "n_layer": 1})).init_weights(0).eval()
    ids = torch.randint(29, (1, 1600), generator=torch.Generator().manual_seed(0))
    before, after = model.logits(ids), model.logits(torch.cat([ids[:, :-1], ids[:, -1:] ^ 1], 1))
    assert before.shape == (1, 1600, 29)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    decoder = Decoder(model, 29)
    torch.testing.assert_close(
        decoder.start(ids.tolist(), 1)[0], before[0, -1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_head": 4, "n_embd": 16, "n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"n_head": 2, "n_embd": 6, "rotary": True}, "change n_head"),
    ],
)
def test_options_that_do_not_fit(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve(settings)


def test_every_preset_is_gpt2() -> None:
    assert TrainConfig().beyond_gpt2() == []
    assert ModelConfig(rotary=True, n_kv_head=2).beyond_gpt2() == ["rotary", "n_kv_head"]


@pytest.mark.thorough
def test_a_compiled_model_with_every_option_computes_the_same() -> None:
    model, ids = made(OPTIONS["all"]), some_ids()
    compiled = torch.compile(model, dynamic=False)
    gradients = []
    for call in (model, compiled):
        model.zero_grad()
        _, loss = call(ids, ids.roll(1, 1))
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)
