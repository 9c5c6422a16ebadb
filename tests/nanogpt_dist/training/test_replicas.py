"""Copies of weights and moments on several ranks: one flipped bit is found, and nothing saved."""

import json
import random
import socket
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist import storage
from nanogpt_dist.distributed.layout import Layout
from nanogpt_dist.distributed.world import World
from nanogpt_dist.errors import BadDataError
from nanogpt_dist.training.optim import named_state
from nanogpt_dist.training.replicas import INTEGERS, Replicas, digest, odd_ranks
from tests.conftest import in_ranks
from tests.nanogpt_dist.small import ONE, events_of, go, tiny
from tests.nanogpt_dist.training.test_step import a_train_step

SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=6)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8])


@given(SHAPES, DTYPES, st.integers(0, 2**32), st.data())
def test_any_bit_that_flips_makes_another_digest(
    shapes: list[tuple[int, int]], dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [(100 * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]
    before = digest(tensors)
    assert digest([tensor.clone() for tensor in tensors]) == before
    assert -(2**63) <= before < 2**63
    chosen = data.draw(st.sampled_from(tensors))
    bits = chosen.view(-1).view(INTEGERS[chosen.element_size()])
    place = data.draw(st.integers(0, len(bits) - 1))
    width = 8 * chosen.element_size()
    bit = data.draw(st.integers(0, width - 1))
    flipped = int(bits[place]) ^ (1 << bit)
    if dtype != torch.uint8:
        flipped = (flipped + 2 ** (width - 1)) % 2**width - 2 ** (width - 1)
    bits[place] = flipped
    assert digest(tensors) != before


def test_each_bit_of_each_of_several_tensors_counts() -> None:
    """The highest, too, which an even factor would lose."""
    tensors = [torch.zeros(2, dtype=torch.int64) for _ in range(4)]
    tensors += [torch.zeros(2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int16)]
    before = digest(tensors)
    for tensor in tensors:
        width = 8 * tensor.element_size()
        for bit in range(width):
            highest = tensor.is_signed() and bit == width - 1
            tensor[1] = -(1 << bit) if highest else 1 << bit
            assert digest(tensors) != before, (tensor.dtype, bit)
            assert -(2**63) <= digest(tensors) < 2**63
        tensor[1] = 0


class Others(World):
    """This rank and three others, as they answer."""

    def gather_ints(self, value: int) -> list[int]:
        ASKED.append(value)
        return [value + ODD[rank] for rank in range(4)]

    def gather_texts(self, text: str) -> list[str]:
        return [f"host{rank}" for rank in range(4)]


ASKED: list[int] = []
ODD = [0, 0, 0, 0]


@pytest.fixture
def replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replicas:
    """Of four ranks of ddp, that compare after each third step."""
    train_step = a_train_step(tmp_path, ONE, check_replicas_every=3)
    train_step.layout = Layout("ddp", 4, 1)
    train_step.world = Others(0, 0, 4, torch.device("cpu"), "gloo")
    monkeypatch.setattr(sys.modules[__name__], "ASKED", [])
    monkeypatch.setattr(sys.modules[__name__], "ODD", [0, 0, 0, 0])
    return Replicas(train_step)


def test_copies_are_due_where_there_are_some_and_compared_once(replicas: Replicas) -> None:
    assert [step for step in range(1, 10) if replicas.is_due(step)] == [3, 6, 9]
    for steps, times in ((1, 1), (1, 1), (3, 2), (3, 2), (4, 3)):
        replicas.compare(steps, "none")
        assert len(ASKED) == times
    replicas.every = 0
    replicas.compare(5, "none")
    assert not replicas.is_due(3)
    replicas.every, replicas.layout = 1, Layout("fsdp", 1, 4)
    replicas.compare(5, "none")
    assert not replicas.is_due(3)
    assert len(ASKED) == 3
    replicas.layout = Layout("fsdp", 2, 2)
    assert replicas.is_due(3)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ([0, 0, 1, 0], "rank 2 on host2 has other weights"),
        ([0, 0, 1, 1], "ranks 0 on host0, 1 on host1, 2 on host2 have other weights"),
    ],
)
def test_the_ranks_that_are_odd_are_named_three_at_most(
    odd: list[int], told: str, replicas: Replicas
) -> None:
    ODD[:] = odd
    with pytest.raises(BadDataError, match=f"^{told} than the copies of them after step 1: ") as e:
        replicas.compare(1, "the last good checkpoint is that of step 0")
    assert "nothing is saved, the last good checkpoint is that of step 0. Test" in str(e.value)
    assert e.value.agreed


def test_the_order_of_tensors_counts_and_nothing_has_one() -> None:
    a, b = torch.randn(3), torch.randn(4)
    assert digest([a, b]) != digest([b, a])
    assert digest([]) == 0


@pytest.mark.parametrize(
    ("digests", "shard", "odd"),
    [
        ([7, 7], 1, []),
        ([7, 8], 1, [0, 1]),  # nobody knows which
        ([7, 8, 7], 1, [1]),
        ([7, 8, 9, 7], 1, [0, 1, 2, 3]),
        ([7, 7, 8, 8], 1, [0, 1, 2, 3]),
        ([1, 2, 1, 2], 2, []),
        ([1, 2, 1, 3], 2, [1, 3]),
        ([1, 2, 4, 2, 1, 2], 2, [2]),
        ([1, 2, 3, 4], 4, []),  # no copies
    ],
)
def test_the_odd_rank_is_the_one_that_most_copies_are_not(
    digests: list[int], shard: int, odd: list[int]
) -> None:
    assert odd_ranks(digests, shard) == odd


@pytest.mark.parametrize(
    ("ranks", "changes", "rank", "told"),
    [
        (2, {"strategy": "ddp"}, 1, "ranks 0 on {host}, 1 on {host} have"),
        (3, {"strategy": "ddp", "batch_size": 3}, 2, "rank 2 on {host} has"),
        pytest.param(
            *(4, {"strategy": "fsdp", "mesh": "2x2"}, 3, "ranks 1 on {host}, 3 on {host} have"),
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            *(
                2,
                {"strategy": "ddp", "optimizer": "muon"},
                0,
                "ranks 0 on {host}, 1 on {host} have",
            ),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_flipped_bit_ends_the_run_before_it_is_saved(
    ranks: int,
    changes: dict[str, object],
    rank: int,
    told: str,
    corpus: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "a"
    all_changes = {"max_iters": 12, "eval_interval": 4, **changes}
    line = in_ranks("flipping", ranks, json.dumps(all_changes), rank, corpus, run)
    assert f"told: {told.format(host=socket.gethostname())} other weights" in line
    assert "after step 8: a bit has flipped; nothing is saved, the last good checkpoint is " in line
    assert [path.name for path in storage.list_steps(run / "checkpoints")] == ["step-00000004"]
    assert storage.verify(run / "checkpoints" / "step-00000004") == []
    status = json.loads((run / "status.json").read_text())
    assert (status["verdict"], status["code"]) == ("failed", 65)
    assert events_of(run)[-1]["event"] == "fail"


def test_a_flip_in_any_tensor_is_compared(tmp_path: Path) -> None:
    """In each weight, moment and averaged weight."""
    train_step = a_train_step(tmp_path, ONE, ema_decay=0.9)
    rows = torch.zeros(2, 32, dtype=torch.int64).numpy()
    train_step.step(0, [(rows, rows)])
    replicas = Replicas(train_step)
    before = digest(replicas._tensors())
    assert train_step.average is not None
    moments = named_state(train_step.model, train_step.optimizer).values()
    averages = train_step.average.weights.values()
    for tensor in (*train_step.model.parameters(), *moments, *averages):
        bits = tensor.detach().view(-1).view(torch.int32)
        bits[-1] ^= 1
        assert digest(replicas._tensors()) != before
        bits[-1] ^= 1
    assert digest(replicas._tensors()) == before


def test_a_single_process_compares_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt_dist.training.replicas.digest", lambda _: pytest.fail("compared"))
    go(tiny(corpus, tmp_path / "a", check_replicas_every=1))


@pytest.mark.thorough
def test_a_hundred_flips_of_a_hundred_are_found() -> None:
    draw = random.Random(1)
    tensors = [torch.randn(64, 32), torch.randn(257), torch.randn(33, 7).to(torch.bfloat16)]
    before = digest(tensors)
    for _ in range(100):
        chosen = draw.choice(tensors)
        bits = chosen.view(-1).view(INTEGERS[chosen.element_size()])
        place, bit = draw.randrange(len(bits)), draw.randrange(8 * chosen.element_size() - 1)
        bits[place] ^= 1 << bit
        assert digest(tensors) != before
        bits[place] ^= 1 << bit
        assert digest(tensors) == before
