"""Equal bits, again and again: resumed and undisturbed, and compiled anew."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Run, command
from tests.gpu.conftest import Measured
from tests.gpu.runs import STRATEGIES, tensor_hashes, train_flags

BITS = {"dtype": "bfloat16", "deterministic": True}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resuming_changes_no_bit(
    strategy: str,
    nanogpt: Run,
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    line = train_flags(corpus, tmp_path / "run", strategy=strategy, dropout=0.1, **BITS)
    said = json.loads(nanogpt(*line, "--check-resume", "--json").stdout)
    assert said["ok"]
    measured.note(bytes=said["bytes"], losses=said["losses"])


@pytest.mark.parametrize("options", [{}, {"intra_document": True, "n_kv_head": 1}])
def test_two_caches_of_the_compiler_give_the_same_bits(
    options: dict[str, object],
    corpus: Path,
    tmp_path: Path,
    measured: Measured,
) -> None:
    """What is compiled anew after a restart, perhaps on another node, chooses the same kernels."""
    found = []
    for name in ("a", "b"):
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache-{name}"),
            "TRITON_CACHE_DIR": str(tmp_path / f"cache-{name}" / "triton"),
        }
        line = command(*train_flags(corpus, tmp_path / name, max_iters=5, **BITS, **options))
        done = subprocess.run(
            line, env={**os.environ, **caches}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(tensor_hashes(tmp_path / name, 5))
    assert found[0]
    measured.note(sha256=found[0])
    assert found[0] == found[1]
    compiled = [any((tmp_path / f"cache-{name}").rglob("*.py")) for name in ("a", "b")]
    measured.on_hardware(all(compiled), "each process compiled into a cache of its own")
