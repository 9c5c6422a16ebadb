"""Muon: against torch.optim.Muon and an SVD, over ranks and in checkpoints; rates of each group."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from nanogpt_dist import storage
from nanogpt_dist.config import TrainConfig, resolve
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.load_config import load
from nanogpt_dist.model.gpt import GPT
from nanogpt_dist.training import optim
from nanogpt_dist.training.groups import parameter_groups
from nanogpt_dist.training.muon import factor, muon_momentum
from nanogpt_dist.training.optim import make_optimizer, set_learning_rates
from nanogpt_dist.training.orthogonalize import BY_NAME, orthogonalize
from nanogpt_dist.training.schedule import learning_rate
from nanogpt_dist.training.step import TrainStep
from tests.conftest import in_ranks
from tests.nanogpt_dist.small import ONE, go, tiny

SMALL = {
    "n_layer": 2,
    "n_embd": 48,
    "n_head": 4,
    "vocab_size": 65,
    "block_size": 16,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "optimizer": "muon",
    "decay_lr": False,
}


def config_of(**changes: object) -> TrainConfig:
    return resolve({**SMALL, **changes})


def model_of(config: TrainConfig) -> GPT:
    return GPT(config.architecture()).init_weights(1)


def give_gradients(model: GPT, step: int) -> dict[str, Tensor]:
    """A gradient of each parameter, drawn by name and step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def split(config: TrainConfig, name: str, matrix: Tensor) -> list[Tensor]:
    if not name.endswith("c_attn.weight"):
        return [matrix]
    D = config.head_size
    return list(matrix.split((config.n_head * D, config.kv_heads * D, config.kv_heads * D)))


def matrices(model: GPT) -> dict[str, Tensor]:
    return {
        name: p.detach()
        for name, p in model.named_parameters()
        if p.ndim == 2 and name.startswith("transformer.h.")
    }


# ---- the update


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_five_steps_are_torchs_muon_of_each_matrix(
    scale: str, kv_heads: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(
        muon_scale=scale, muon_coefficients="newton_schulz", n_kv_head=kv_heads, weight_decay=0.2
    )
    if dtype == torch.float32:  # torch's computes in bfloat16 alone
        monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    model = model_of(config)
    optimizer = make_optimizer(model, config, dtype=dtype)
    expected = {
        name: [part.clone().requires_grad_() for part in split(config, name, matrix)]
        for name, matrix in matrices(model).items()
    }
    theirs = torch.optim.Muon(
        [part for parts in expected.values() for part in parts],
        lr=config.muon_learning_rate,
        momentum=config.muon_momentum,
        weight_decay=config.weight_decay,
        adjust_lr_fn=scale,
    )
    before = {name: matrix.clone() for name, matrix in matrices(model).items()}
    for step in range(5):
        gradients = give_gradients(model, step)
        for name, parts in expected.items():
            for part, gradient in zip(parts, split(config, name, gradients[name]), strict=True):
                part.grad = gradient.clone()
        set_learning_rates(optimizer, step, config)
        optimizer.step()
        theirs.step()
    for name, matrix in matrices(model).items():
        whole = torch.cat(expected[name]).detach()
        moved = (whole - before[name]).norm()
        allowed = 1e-5 if dtype == torch.float32 else 0.1
        assert (matrix - whole).norm() < allowed * moved, name


def test_a_gradient_below_float16s_range_makes_the_same_step() -> None:
    """An orthogonal matrix has no size: the gradient's does not matter."""
    ends = []
    for size in (1.0, 1e-6):
        config = config_of(weight_decay=0.0)
        model = model_of(config)
        optimizer = make_optimizer(model, config, dtype=torch.float16)
        give_gradients(model, 1)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= size
        optimizer.step()
        ends.append(matrices(model))
    for name, matrix in ends[0].items():
        torch.testing.assert_close(ends[1][name], matrix, rtol=0, atol=2e-4)


def test_all_other_parameters_are_adamws_to_the_bit() -> None:
    """As with --optimizer adamw, for the same gradients, and without decay."""
    models = [model_of(config_of(optimizer=name)) for name in ("muon", "adamw")]
    for model, name in zip(models, ("muon", "adamw"), strict=True):
        config = config_of(optimizer=name, weight_decay=0.1 if name == "muon" else 0.0)
        optimizer = make_optimizer(model, config)
        for step in range(3):
            give_gradients(model, step)
            set_learning_rates(optimizer, step, config)
            optimizer.step()
    hidden = matrices(models[0]).keys()
    ours, theirs = (dict(model.named_parameters()) for model in models)
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == set(hidden)
    assert len(hidden) == 4 * config.n_layer


def test_the_gate_and_the_value_of_swiglu_are_two_matrices() -> None:
    config = config_of(mlp="swiglu", weight_decay=0.0, muon_momentum=0.0)
    model = model_of(config)
    optimizer = make_optimizer(model, config)
    weight = model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    give_gradients(model, 0)
    optimizer.step()
    for gate in (before - weight.detach()).chunk(2):
        step = gate / (config.muon_learning_rate * factor(*gate.shape, config.muon_scale))
        assert torch.linalg.svdvals(step).min() > 0.5


# ---- the orthogonal matrix

BANDS = {"polar_express": (0.858, 1.142), "newton_schulz": (0.681, 1.203)}  # of s from 0.01 on


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("shape", [(48, 48), (32, 128), (128, 32)], ids=str)
def test_a_matrix_becomes_the_nearest_orthogonal_one(name: str, shape: tuple[int, int]) -> None:
    """U and V are kept; each singular value goes the way of the polynomial, into its band."""
    coefficients, steps = BY_NAME[name], 5
    generator = torch.Generator().manual_seed(1)
    u, _, vt = torch.linalg.svd(
        torch.randn(3, *shape, generator=generator, dtype=torch.float64), full_matrices=False
    )
    s = torch.logspace(0, -1.9, u.size(2), dtype=torch.float64).expand(3, -1)
    given = u @ torch.diag_embed(s * torch.tensor([[1e-6], [1.0], [1e6]])) @ vt
    expected = s / (s.norm(dim=1, keepdim=True) * coefficients.margin)
    assert expected.min() > 0.001
    for step in range(steps):
        a, b, c = coefficients.of(step)
        expected = a * expected + b * expected**3 + c * expected**5
    found = orthogonalize(given.clone(), coefficients, steps)
    torch.testing.assert_close(found[1:], u[1:] @ torch.diag_embed(expected[1:]) @ vt[1:])
    nearest = u @ vt
    low, high = BANDS[name]
    for low_dtype, slack in ((torch.float32, 0.0), (torch.bfloat16, 0.1)):
        near = orthogonalize(given.to(low_dtype), coefficients, steps).double()
        kept = s[1] >= 0.01 * s[1].norm()
        along = torch.einsum("nrk,nrc,nkc->nk", u, near, vt)[:, kept]
        assert along.min() > low - slack
        assert along.max() < high + slack
    assert (found - nearest).norm() < 0.35 * nearest.norm()


def test_more_steps_come_nearer_and_zeros_stay_zeros() -> None:
    given = torch.randn(2, 24, 24, generator=torch.Generator().manual_seed(2))
    u, _, vt = torch.linalg.svd(given)
    polar = BY_NAME["polar_express"]
    far, near = ((orthogonalize(given.clone(), polar, n) - u @ vt).norm() for n in (3, 9))
    assert near < 1e-4 * far
    assert not orthogonalize(torch.zeros(1, 8, 4), polar, 5).any()


def test_polar_express_repeats_its_last_triple() -> None:
    polar = BY_NAME["polar_express"]
    assert [polar.of(step) == polar.triples[-1] for step in range(7)] == [False] * 5 + [True] * 2


# ---- decay, momentum, rates


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_cautious_decay_is_where_the_step_points_to_zero(name: str) -> None:
    """The decay is left out just where weight and step have other signs."""
    ends, steps = {}, {}
    for decay, cautious in ((0.0, False), (0.5, False), (0.5, True)):
        config = config_of(
            optimizer=name, weight_decay=decay, cautious_weight_decay=cautious, beta2=0.9
        )
        model = model_of(config)
        optimizer = make_optimizer(model, config)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        give_gradients(model, 3)
        set_learning_rates(optimizer, 0, config)
        optimizer.step()
        ends[decay, cautious] = {n: p.detach().clone() for n, p in model.named_parameters()}
        if not decay:
            steps = {n: before[n] - p.detach() for n, p in model.named_parameters()}
    for key, step in steps.items():
        kinds = (0.0, False), (0.5, False), (0.5, True)
        free, always, cautious_end = (ends[kind][key] for kind in kinds)
        if key not in matrices(model) and (name == "muon" or step.ndim < 2):
            assert torch.equal(free, cautious_end), key
            assert torch.equal(free, always), key
            continue
        inwards = step * before[key] > 0
        assert 0.3 < inwards.float().mean() < 0.7
        torch.testing.assert_close(cautious_end, torch.where(inwards, always, free))
        assert not torch.allclose(cautious_end, always, rtol=0, atol=1e-7), key


def test_the_momentum_rises_from_085_stays_and_falls_back() -> None:
    config = config_of(muon_momentum_warmup=10, muon_momentum_cooldown=20, max_iters=100)
    found = [muon_momentum(step, config) for step in (0, 5, 10, 50, 80, 90, 100, 101)]
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95, 0.95, 0.9, 0.85, 0.85])
    assert {muon_momentum(step, config_of()) for step in (0, 10, 10**6)} == {0.95}
    optimizer = make_optimizer(model_of(config), config)
    set_learning_rates(optimizer, 5, config)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.9)


RATES = {
    "embedding_learning_rate": 0.3,
    "head_learning_rate": 0.004,
    "scalar_learning_rate": 0.05,
    "muon_learning_rate": 0.07,
}


def rates_by_name(step: int, **changes: object) -> dict[str, float]:
    config = config_of(**changes)
    model = model_of(config)
    optimizer = make_optimizer(model, config)
    assert set_learning_rates(optimizer, step, config) == learning_rate(step, config)
    names = {p: name for name, p in model.named_parameters()}
    found = [(names[p], g["lr"]) for g in optimizer.param_groups for p in g["params"]]
    assert len(dict(found)) == len(found) == len(names)
    return dict(found)


@pytest.mark.parametrize("tied", [True, False])
def test_each_group_has_its_own_rate_times_the_schedules_factor(tied: bool) -> None:
    changes = {"tied_head": tied, "bias": True, "decay_lr": True, "warmup_iters": 4, **RATES}
    config = config_of(**changes)
    for step in (0, 2, config.max_iters):
        share = learning_rate(step, config) / config.learning_rate
        found = rates_by_name(step, **changes)
        expected = {
            "transformer.wte.weight": 0.3,
            "transformer.wpe.weight": 0.3,
            "transformer.h.0.ln_1.weight": 0.05,
            "transformer.h.1.attn.c_attn.bias": 0.05,
            "transformer.h.0.attn.c_attn.weight": 0.07,
            "transformer.h.1.mlp.c_proj.weight": 0.07,
            **({} if tied else {"lm_head.weight": 0.004}),
        }
        assert {name: found[name] / share for name in expected} == pytest.approx(expected)
        assert ("lm_head.weight" in found) != tied


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_base_width_lowers_adamws_rate_of_matrices_and_head_alone(name: str) -> None:
    common = {"optimizer": name, "tied_head": False, "n_embd": 48}
    plain, scaled = rates_by_name(0, **common), rates_by_name(0, **common, base_width=12)
    by_adamw = {"lm_head.weight"}
    if name == "adamw":
        by_adamw |= set(matrices(model_of(config_of())))
    for key, rate in plain.items():
        assert scaled[key] == pytest.approx(rate / 4 if key in by_adamw else rate), key
    for base_width in (None, 12):  # a step decays as much
        config = config_of(**common, base_width=base_width)
        groups = parameter_groups(model_of(config), config)
        decays = {
            round(g["lr_scale"] * config.learning_rate * g["weight_decay"], 9) for g in groups
        }
        rate = config.muon_learning_rate if name == "muon" else config.learning_rate
        assert decays == {0.0, round(0.1 * rate, 9)}


def test_without_a_new_setting_the_groups_are_matrices_and_vectors() -> None:
    config = load("gpt2-124m", {"n_layer": 1, "n_embd": 12, "n_head": 2, "vocab_size": 8})
    model = GPT(config.architecture())
    found = parameter_groups(model, config)
    parameters = list(model.parameters())
    assert [{k: v for k, v in group.items() if k != "params"} for group in found] == [
        {"weight_decay": 0.1, "lr_scale": 1.0},
        {"weight_decay": 0.0, "lr_scale": 1.0},
    ]
    for group, decays in zip(found, (True, False), strict=True):
        ids = [id(p) for p in parameters if (p.ndim >= 2) == decays]
        assert [id(p) for p in group["params"]] == ids


# ---- steps that are left out, checkpoints, ranks


def a_train_step(folder: Path, **changes: object) -> TrainStep:
    config = tiny(folder, folder / "run", vocab_size=64, **{"optimizer": "muon", **changes})
    return TrainStep(config, ONE, Layout("single", 1, 1), torch.float32)


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(
    on_device: bool, cautious: bool, tmp_path: Path
) -> None:
    """on_device: as on CUDA, where nobody waits for the flag."""
    train_step = a_train_step(tmp_path, cautious_weight_decay=cautious)
    rows = torch.zeros(2, 32, dtype=torch.int64).numpy()
    assert train_step.step(0, [(rows, rows)]).finite
    optimizer, model = train_step.optimizer, train_step.model
    before = {
        **{name: p.detach().clone() for name, p in model.named_parameters()},
        **{name: value.clone() for name, value in optim.named_state(model, optimizer).items()},
    }
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    if on_device:
        for group in optimizer.matrix_groups:  # type: ignore[attr-defined]
            with torch.no_grad():
                optimizer._step(group, torch.ones(()))  # type: ignore[attr-defined]
    else:
        optim.step_unless(torch.ones(()), optimizer)
    after = {**dict(model.named_parameters()), **optim.named_state(model, optimizer)}
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_the_flag_on_the_device_leaves_a_finite_step_as_it_is(tmp_path: Path) -> None:
    ends = []
    for flag in (None, torch.zeros(())):
        train_step = a_train_step(tmp_path, cautious_weight_decay=True)
        give_gradients(train_step.model, 1)
        optimizer = train_step.optimizer
        set_learning_rates(optimizer, 100, train_step.config)
        for group in optimizer.matrix_groups:  # type: ignore[attr-defined]
            with torch.no_grad():
                optimizer._step(group, flag)  # type: ignore[attr-defined]
        ends.append(matrices(train_step.model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_momentum_takes_half_the_bytes_of_adamws_moments(corpus: Path, tmp_path: Path) -> None:
    sizes = {}
    for name in ("adamw", "muon"):
        config = tiny(corpus, tmp_path / name, optimizer=name, vocab_size=257)
        saved = Path(go(config).checkpoint)
        moments = load_file(saved / "optimizer.safetensors")
        hidden = [key for key in moments if ".h." in key and moments[key].ndim == 2]
        sizes[name] = sum(moments[key].nbytes for key in hidden)
        kept = {key.rpartition(".")[2] for key in hidden}
        assert kept == ({"momentum_buffer"} if name == "muon" else {"exp_avg", "exp_avg_sq"})
        weights = load_file(saved / "model.safetensors")
        count = sum(weight.numel() for weight in weights.values())
        states = sum(value.nbytes for value in moments.values() if value.ndim)
        assert states == pytest.approx((optim.checkpoint_bytes(config) - 4) * count)
        assert optim.training_bytes(config) == optim.checkpoint_bytes(config) + 4
    assert sizes["muon"] * 2 == sizes["adamw"]


def test_a_run_of_two_halves_ends_with_the_same_bits(corpus: Path, tmp_path: Path) -> None:
    given = {
        "optimizer": "muon",
        "dropout": 0.1,
        "lr_decay_iters": 8,
        "muon_momentum_warmup": 6,
        "cautious_weight_decay": True,
    }
    go(tiny(corpus, tmp_path / "whole", **given))
    for until in (4, 8):
        go(tiny(corpus, tmp_path / "halves", max_iters=until, **given))
    ends = [tmp_path / run / "checkpoints" / storage.step_name(8) for run in ("whole", "halves")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_without_rows_and_uneven_shards_make_the_same_step(size: int, tmp_path: Path) -> None:
    in_ranks("muon", size, tmp_path)


# ---- width


@given(st.sampled_from(["original", "match_rms_adamw"]), st.integers(1, 64), st.integers(1, 64))
def test_the_factor_of_a_rate_is_torchs(scale: str, rows: int, columns: int) -> None:
    from torch.optim._muon import _adjust_lr

    assert factor(rows, columns, scale) == _adjust_lr(1.0, scale, torch.Size([rows, columns]))
