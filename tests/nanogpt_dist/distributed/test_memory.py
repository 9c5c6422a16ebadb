"""A model that does not fit into memory is refused before it is built."""

import pytest

from nanogpt_dist.distributed.memory import Memory, check_fit
from nanogpt_dist.errors import ConfigError

GIB = 2**30
BILLION = 16 * 10**9  # 14.9 GiB of weights, gradients and moments of a billion parameters


def test_a_model_that_does_not_fit_is_refused_before_it_is_built() -> None:
    assert check_fit(BILLION, Memory(32 * GIB, 20 * GIB, 1, on_cpu=True)) is None
    assert "activations come on top" in str(
        check_fit(BILLION, Memory(32 * GIB, 16 * GIB, 1, on_cpu=True))
    )
    with pytest.raises(ConfigError, match=r"take 14.9 GiB, this machine has 8.0 GiB"):
        check_fit(BILLION, Memory(8 * GIB, None, 1, on_cpu=True))
    with pytest.raises(ConfigError, match=r"take 29.8 GiB, this machine has 32.0 GiB, 20.0 free"):
        check_fit(BILLION, Memory(32 * GIB, 20 * GIB, 2, on_cpu=True))  # two ranks of ddp
    assert check_fit(BILLION // 2, Memory(32 * GIB, 20 * GIB, 2, on_cpu=True)) is None  # of fsdp
    assert "the GPU has 24.0 GiB, 10.0 free" in str(
        check_fit(BILLION, Memory(24 * GIB, 10 * GIB, 1, on_cpu=False))
    )
