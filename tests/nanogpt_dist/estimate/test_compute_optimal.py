"""The best size for a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.errors import ConfigError
from nanogpt_dist.estimate.compute_optimal import (
    GPT3,
    TABLE_3,
    best_settings,
    optimal_parameters,
    optimal_tokens,
)
from nanogpt_dist.estimate.flops import model_flops_per_token
from nanogpt_dist.inspect.formulas import count_by_arithmetic
from nanogpt_dist.load_config import load, with_vocabulary


@pytest.mark.parametrize(("parameters", "tokens"), TABLE_3)
def test_the_rows_of_the_table_are_met(parameters: float, tokens: float) -> None:
    assert optimal_tokens(parameters) == pytest.approx(tokens)
    assert optimal_parameters(6 * parameters * tokens) == pytest.approx(parameters, rel=1e-6)


@given(st.floats(1e6, 1e14), st.floats(1.001, 100))
def test_more_parameters_want_more_tokens_about_twenty_each(n: float, times: float) -> None:
    assert 19 < optimal_tokens(n) / n < 24
    assert optimal_tokens(n * times) > optimal_tokens(n)


@pytest.mark.parametrize("preset", ["gpt2-124m", "modern-124m", "quickstart"])
@pytest.mark.parametrize("flops", [1e18, 1e20, 1e22])
@pytest.mark.parametrize("ranks", [1, 8, 48])
def test_the_settings_spend_the_budget_near_the_optimum(
    preset: str,
    flops: float,
    ranks: int,
) -> None:
    base = with_vocabulary(load(preset))
    config = best_settings(base, flops, ranks).config
    parameters = sum(count_by_arithmetic(config).values())
    tokens = config.max_iters * config.global_batch_size * config.block_size
    assert 0.9 * flops < tokens * model_flops_per_token(config) <= flops
    assert 0.99 < tokens / optimal_tokens(parameters) < 1.6  # the next size would cost more
    assert config.global_batch_size % ranks == 0
    assert config.max_iters >= 60
    assert config.warmup_iters < config.max_iters
    assert config.optimizer == base.optimizer


@pytest.mark.parametrize("parameters", [row[0] for row in GPT3])
def test_rates_have_few_digits_to_type(parameters: float) -> None:
    base = with_vocabulary(load("gpt2-124m"))
    found = best_settings(base, 6 * parameters * optimal_tokens(parameters), 8).settings
    assert all(len(str(found[name])) <= len("0.00025") for name in ("learning_rate", "min_lr"))


def test_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        best_settings(with_vocabulary(load("gpt2-124m")), 1e12, 1)
    ramp = with_vocabulary(load("gpt2-124m", {"batch_ramp": "0:240,10:480"}))
    with pytest.raises(ConfigError, match="leave --batch-ramp out"):
        best_settings(ramp, 1e20, 1)
    foreign = with_vocabulary(load("gpt2-124m")).model_copy(update={"init_from": "gpt2"})
    with pytest.raises(ConfigError, match="leave --init-from out"):
        best_settings(foreign, 1e20, 1)
