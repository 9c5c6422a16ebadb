"""Run by test_collectives.py in two processes: `two_ranks.py sums|dies`, on the fake GPU."""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist


def sums(rank: int, here: torch.device) -> None:
    """Each collective that training asks for, between both."""
    x = torch.full((4,), rank + 1.0, device=here)
    dist.all_reduce(x)
    assert x.tolist() == [3.0] * 4
    work = dist.all_reduce(x, op=dist.ReduceOp.AVG, async_op=True)
    assert work is not None
    work.wait()
    assert x.tolist() == [3.0] * 4
    (future,) = dist.all_reduce(x, async_op=True).get_future().wait()  # type: ignore[union-attr]
    assert future.device == here  # DDP goes on with it
    y = torch.full((2,), float(rank), device=here)
    dist.broadcast(y, src=1)
    assert y.tolist() == [1.0, 1.0]
    both = torch.empty(4, device=here)
    dist.all_gather_into_tensor(both, torch.full((2,), float(rank), device=here))
    assert both.tolist() == [0.0, 0.0, 1.0, 1.0]
    mine = torch.empty(2, device=here)
    dist.reduce_scatter_tensor(mine, torch.arange(4.0, device=here))
    assert mine.tolist() == [4.0 * rank, 4.0 * rank + 2]
    dist.barrier()
    votes = torch.tensor([rank])  # the host's go by gloo, as before
    dist.all_reduce(votes)
    assert votes.item() == 1
    assert dist.get_backend_config() == "cpu:gloo,cuda:nccl"
    dist.destroy_process_group()


def dies(rank: int, here: torch.device) -> None:
    """Rank 1 leaves; rank 0 goes on, and finds that its device does not."""
    x = torch.ones(4, device=here)
    dist.all_reduce(x)
    if rank == 1:
        os._exit(3)
    dist.all_reduce(x)  # no error, as with NCCL
    event = torch.cuda.Event()
    event.record()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert not event.query()
    print("waiting", flush=True)
    x.tolist()  # until NCCL's watchdog ends the process
    print("read", flush=True)


def main() -> None:
    rank = int(os.environ["RANK"])
    here = torch.device("cuda", rank)
    torch.cuda.set_device(here)
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timedelta(seconds=3))
    {"sums": sums, "dies": dies}[sys.argv[1]](rank, here)
    sys.stdout.flush()
    os._exit(0)


main()
