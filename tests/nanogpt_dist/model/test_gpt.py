"""The model against Hugging Face's GPT-2, and what its docstrings promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.model.gpt import GPT

SMALL = ModelConfig(block_size=16, vocab_size=61, n_layer=2, n_head=2, n_embd=16)
WITH_BIAS = SMALL.model_copy(update={"bias": True})
SHAPES = [
    {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 4, "vocab_size": 11},
    {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 97},
    {"n_layer": 3, "n_head": 3, "n_embd": 48, "block_size": 64, "vocab_size": 256},
]


def make(config: ModelConfig, seed: int = 1) -> GPT:
    return GPT(config).init_weights(seed).eval()


def ids(config: ModelConfig, batch: int = 3, length: int | None = None, seed: int = 0) -> Tensor:
    assert config.vocab_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        config.vocab_size, (batch, length or config.block_size), generator=generator
    )


def hugging_face(config: ModelConfig) -> nn.Module:
    """GPT2LMHeadModel of the same architecture; all its values are drawn, LayerNorms and biases
    too.
    """
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu_new" if config.gelu == "tanh" else "gelu",
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return theirs.eval()


def copied_from(theirs: nn.Module, config: ModelConfig) -> GPT:
    """Our model with their weights; their Conv1D keeps (in, out) where nn.Linear keeps (out,
    in).
    """
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    ours = GPT(config).eval()
    ours.load_state_dict(
        {name: w.T if name.endswith(conv1d) else w for name, w in theirs.state_dict().items()}
    )
    return ours


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
@pytest.mark.parametrize("shape", SHAPES, ids=["1x8", "2x32", "3x48"])
def test_equals_hugging_face(shape: dict[str, int], gelu: str) -> None:
    config = ModelConfig(**shape, bias=True, gelu=gelu)
    theirs = hugging_face(config)
    ours, tokens = copied_from(theirs, config), ids(config)
    with torch.no_grad():
        logits, loss = ours(tokens[:, :-1], tokens[:, 1:])
        expected = theirs(tokens, labels=tokens)  # their loss shifts the labels itself
    assert loss is not None
    torch.testing.assert_close(logits, expected.logits[:, :-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)


def test_the_two_gelus_differ() -> None:
    config = ModelConfig(**SHAPES[1], bias=True, gelu="tanh")
    theirs, tokens = hugging_face(config), ids(config)
    tanh = copied_from(theirs, config).logits(tokens)
    exact = copied_from(theirs, config.model_copy(update={"gelu": "exact"})).logits(tokens)
    assert 1e-5 < (tanh - exact).abs().max() < 0.1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 15), st.integers(0, 60), st.integers(0, 1000))
def test_a_later_token_leaves_earlier_logits_equal(position: int, token: int, seed: int) -> None:
    model, tokens = make(SMALL), ids(SMALL, seed=seed)
    changed = tokens.clone()
    changed[:, position] = (tokens[:, position] + 1 + token % 60) % 61  # another token in each row
    with torch.no_grad():
        before, after = model.logits(tokens), model.logits(changed)
    torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-6, rtol=0)
    assert not torch.equal(after[:, position], before[:, position])


def test_initial_values() -> None:
    config = ModelConfig(block_size=64, vocab_size=512, n_layer=3, n_head=2, n_embd=128, bias=True)
    for name, parameter in make(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(2 * 3) if name.endswith("c_proj.weight") else 0.02
            # five standard errors of the mean, and more of the deviation
            few = 5 / math.sqrt(parameter.numel())
            assert abs(parameter.mean()) < few * expected, name
            assert abs(parameter.std() / expected - 1) < few, name


def test_initial_values_depend_on_seed_and_name_only() -> None:
    torch.manual_seed(5)
    first = make(SMALL, seed=3).state_dict()
    torch.rand(1000)
    again, other = make(SMALL, seed=3).state_dict(), make(SMALL, seed=4).state_dict()
    deeper = make(SMALL.model_copy(update={"n_layer": 4}), seed=3).state_dict()
    matrices = [name for name, value in first.items() if value.ndim == 2]
    for name in matrices:
        assert torch.equal(first[name], again[name]), name
        assert not torch.equal(first[name], other[name]), name
        if not name.endswith("c_proj.weight"):  # whose scale is a function of n_layer
            assert torch.equal(first[name], deeper[name]), name
    blocks = [first[f"transformer.h.{i}.mlp.c_fc.weight"] for i in (0, 1)]
    assert not torch.equal(*blocks)


def test_initialising_leaves_the_global_generator_alone() -> None:
    model = GPT(SMALL)
    before = torch.get_rng_state()
    model.init_weights(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_head_and_token_table_are_one_tensor() -> None:
    model = make(SMALL)
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert model.num_params() == sum(p.numel() for p in model.parameters())
    # wpe: block_size × n_embd
    assert model.num_params() - model.num_params(non_embedding=True) == 16 * 16


def test_cropping_keeps_the_logits_of_short_inputs() -> None:
    model, tokens = make(SMALL), ids(SMALL, length=7)
    before = model.logits(tokens)
    model.crop_block_size(7)
    assert torch.equal(model.logits(tokens), before)
    assert model.config.block_size == 7
    assert model.transformer.wpe.weight.shape == (7, 16)
    assert model.transformer.wpe.weight.requires_grad
    with pytest.raises(AssertionError, match="8 tokens"):
        model.logits(ids(SMALL, length=8))


@pytest.mark.parametrize("vocab_size", [65, 4096])
def test_first_loss_is_that_of_guessing(vocab_size: int) -> None:
    config = ModelConfig(block_size=64, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=64)
    tokens = ids(config, batch=8)
    _, loss = make(config)(tokens, tokens.roll(-1, dims=1))
    assert loss.item() == pytest.approx(math.log(vocab_size), abs=0.05)  # 4.174 for 65


def test_dropout_acts_in_training_only() -> None:
    config = SMALL.model_copy(update={"dropout": 0.5})
    model, tokens = make(config), ids(config)
    assert torch.equal(model.logits(tokens), model.logits(tokens))
    assert torch.equal(model.logits(tokens), make(SMALL).logits(tokens))
    model.train()
    assert not torch.equal(model.logits(tokens), model.logits(tokens))


def test_without_targets_only_the_last_position_is_computed() -> None:
    model, tokens = make(WITH_BIAS), ids(WITH_BIAS)
    last, none = model(tokens)
    every, loss = model(tokens, tokens)
    assert none is None
    assert last.shape == (3, 1, 61)
    assert loss.shape == ()
    torch.testing.assert_close(last, every[:, -1:], atol=1e-6, rtol=0)


def test_loss_is_the_mean_over_all_tokens() -> None:
    model, tokens = make(SMALL), ids(SMALL, batch=4)
    targets = tokens.roll(-1, dims=1)
    halves = [model(tokens[rows], targets[rows])[1] for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(model(tokens, targets)[1], (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("config", [SMALL, WITH_BIAS], ids=["no bias", "bias"])
def test_gradient_reaches_every_parameter(config: ModelConfig) -> None:
    model, tokens = make(config).train(), ids(config)
    model(tokens, tokens.roll(-1, dims=1))[1].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_flops_per_token() -> None:
    # 6 · (parameters without wpe) + 12 · layers · width · context
    model = make(SMALL)
    assert model.flops_per_token() == 6 * (model.num_params() - 256) + 12 * 2 * 16 * 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_without_an_id_change_neither_loss_nor_gradients(
    tied: bool,
    dtype: torch.dtype,
) -> None:
    wide = SMALL.model_copy(update={"vocab_size": 128, "tied_head": tied})
    padded = GPT(wide, n_vocab=61).init_weights(3)
    exact = GPT(wide.model_copy(update={"vocab_size": 61}))
    with torch.no_grad():
        for name, weight in exact.named_parameters():
            weight.copy_(padded.get_parameter(name)[: len(weight)])
    x, y = ids(exact.config), ids(exact.config, seed=1)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        losses = [model(x, y)[1] for model in (padded, exact)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    for name, weight in exact.named_parameters():
        full = padded.get_parameter(name).grad
        torch.testing.assert_close(full[: len(weight)], weight.grad, rtol=1e-4, atol=1e-6)
        assert not full[len(weight) :].any()
    assert padded.logits(x)[..., 61:].eq(-torch.inf).all()


def test_initial_values_are_drawn_on_the_cpu_also_under_another_default_device() -> None:
    model = GPT(SMALL)
    with torch.device("meta"):
        model.init_weights(1)
    expected = make(SMALL).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
