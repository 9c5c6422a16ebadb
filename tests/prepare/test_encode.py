"""Encoding in parallel: the workers do not show, not even when they die."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import (
    BadDataError,
    StorageError,
)
from prepare import encode
from prepare.encode import Batch, Part, batches, encode_batches


def test_batches_depend_on_the_text_only(tmp_path: Path) -> None:
    tokenizer = tokenizers.byte()
    tokenizer.save(tmp_path / "t.json")
    parts = [(Part("val" if i % 7 == 0 else "train", f"document {i} " * 5000, True), i) for i in range(150)]
    one, two = (list(encode_batches(batches(parts), tmp_path / "t.json", True, n)) for n in (1, 2))
    assert len(one) > 5
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes == b.read_bytes
        for x, y in zip(a.encoded, b.encoded, strict=True):
            assert x.split == y.split
            assert np.array_equal(x.ids, y.ids)
            assert np.array_equal(x.ends, y.ends)


def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    tokenizers.byte().save(tmp_path / "t.json")
    given = [Batch([Part("train", f"text {i}", True)], read_bytes=i) for i in range(60)]
    results = []
    for result in encode_batches(given, tmp_path / "t.json", True, 2):
        results.append(result)
        if len(results) in (5, 30):
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    decoded = [tokenizers.byte().decode(r.encoded[0].ids) for r in results]
    assert decoded == [f"text {i}<|endoftext|>" for i in range(60)]


def test_workers_that_keep_dying_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("no tokenizer")  # a worker fails to start
    with pytest.raises(StorageError, match=f"died {encode.ATTEMPTS} times"):
        list(encode_batches([Batch([Part("train", "x", True)])], tmp_path / "t.json", True, 2))


def test_errors_in_workers_arrive(tmp_path: Path) -> None:
    tokenizers.char("ab").save(tmp_path / "t.json")
    with pytest.raises(BadDataError, match=r"'c' \(U\+0063\)"):
        list(encode_batches([Batch([Part("train", "abc", True)])], tmp_path / "t.json", False, 2))
