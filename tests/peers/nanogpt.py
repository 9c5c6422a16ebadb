"""Against a clone of nanoGPT: its own model, optimizer, sample.py and train.py, with what we import
and export.

    python -m tests.peers.nanogpt PATH/TO/nanoGPT

Its train.py makes a ckpt.pt on characters (and so a meta.pkl), we import it: equal logits; both
continue for 20 updates on the same batches: equal losses; we export it: its model gives equal
logits, its sample.py and train.py go on with it.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from nanogpt_dist import checkpoint
from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.strategy import plan_layout
from nanogpt_dist.interop.import_run import SINGLE_PROCESS, read_moments
from nanogpt_dist.training.optim import training_bytes
from nanogpt_dist.training.schedule import learning_rate
from nanogpt_dist.training.step import TrainStep

TEXT = (
    "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 400
)
UPDATES = 20
SIZES = [
    "--n_layer=3",
    "--n_head=4",
    "--n_embd=64",
    "--block_size=32",
    "--batch_size=6",
    "--dropout=0.0",
]
QUICK = [
    "--device=cpu",
    "--compile=False",
    "--dtype=float32",
    "--eval_iters=2",
    "--always_save_checkpoint=True",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", type=Path)
    clone = parser.parse_args().clone.resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "nanoGPT"
        subprocess.run(["cp", "-r", str(clone), str(work)], check=True)
        prove(work, Path(scratch))


def prove(work: Path, scratch: Path) -> None:
    make_characters(work / "data" / "shakespeare_char")
    python(
        work,
        "train.py",
        "config/train_shakespeare_char.py",
        *SIZES,
        *QUICK,
        "--max_iters=30",
        "--eval_interval=30",
    )
    theirs = work / "out-shakespeare-char" / "ckpt.pt"
    nanogpt("import", "nanogpt", theirs, "--out-dir", scratch / "run", cwd=work)
    found = scratch / "run" / "checkpoints" / "step-00000030"
    ours, config = checkpoint.load_model(found, torch.device("cpu"))
    model, _ = their_model(work, theirs)
    ids = torch.randint(
        config.vocab_size or 1, (4, config.block_size), generator=torch.Generator().manual_seed(0)
    )
    report("logits, nanoGPT → ours", difference(ours.logits(ids), their_logits(model, ids)), 1e-5)

    losses = list(
        zip(continue_theirs(work, theirs, config), continue_ours(found, config), strict=True)
    )
    for step, (a, b) in enumerate(losses, 1):
        print(f"  update {step:2}: nanoGPT {a:.6f}, ours {b:.6f}")
    report(f"loss over {UPDATES} updates", max(abs(a - b) for a, b in losses), 1e-4)

    nanogpt("export", "nanogpt", scratch / "run", work / "back" / "ckpt.pt")
    back, again = their_model(work, work / "back" / "ckpt.pt")
    report(
        "logits, nanoGPT → ours → nanoGPT",
        difference(their_logits(back, ids), their_logits(model, ids)),
        1e-5,
    )
    before = torch.load(theirs, weights_only=True)["optimizer"]
    for number, state in before["state"].items():
        assert all(
            torch.equal(state[key], again["optimizer"]["state"][number][key]) for key in state
        ), number
    assert [group["params"] for group in before["param_groups"]] == [
        g["params"] for g in again["optimizer"]["param_groups"]
    ]
    print("optimizer, nanoGPT → ours → nanoGPT: equal, tensor by tensor")
    args = ["--out_dir=back", "--device=cpu", "--compile=False", "--dtype=float32"]
    said = python(work, "sample.py", *args, "--num_samples=1", "--max_new_tokens=40")
    print("its sample.py:", repr(said.split("meta.pkl...")[-1].strip()[:60]))
    said = python(
        work,
        "train.py",
        "config/train_shakespeare_char.py",
        *SIZES,
        *QUICK,
        "--init_from=resume",
        "--out_dir=back",
        "--max_iters=32",
        "--eval_interval=2",
        "--log_interval=1",
    )
    print("its train.py:", [line for line in said.splitlines() if line.startswith("iter")][-1])


def make_characters(folder: Path) -> None:
    """As its prepare.py, which would fetch the text, does it."""
    import pickle

    chars = sorted(set(TEXT))
    ids = np.array([chars.index(c) for c in TEXT], dtype=np.uint16)
    ids[: len(ids) * 9 // 10].tofile(folder / "train.bin")
    ids[len(ids) * 9 // 10 :].tofile(folder / "val.bin")
    meta = {
        "vocab_size": len(chars),
        "itos": dict(enumerate(chars)),
        "stoi": {c: i for i, c in enumerate(chars)},
    }
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def python(work: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=work, check=True, capture_output=True, text=True
    ).stdout


def nanogpt(*arguments: object, cwd: Path | None = None) -> None:
    subprocess.run(
        [sys.executable, "-m", "nanogpt_dist", *map(str, arguments)], check=True, cwd=cwd
    )


def model_module(work: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("their_model", work / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["their_model"] = module
    spec.loader.exec_module(module)
    return module


def their_model(work: Path, path: Path) -> tuple[torch.nn.Module, dict]:
    module = model_module(work)
    content = torch.load(path, weights_only=True)
    model = module.GPT(module.GPTConfig(**content["model_args"]))
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in content["model"].items()}
    model.load_state_dict(state)
    return model, content


def their_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(ids, ids)[0]


def batches(config: TrainConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    shape = (UPDATES, config.global_batch_size, config.block_size + 1)
    rows = torch.randint(config.vocab_size or 1, shape, generator=generator)
    return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]


def continue_theirs(work: Path, path: Path, config: TrainConfig) -> list[float]:
    """Updates as its train.py makes them, with its own model and optimizer, and the rate of its
    schedule.
    """
    model, content = their_model(work, path)
    optimizer = model.configure_optimizers(
        config.weight_decay, config.learning_rate, (config.beta1, config.beta2), "cpu"
    )
    optimizer.load_state_dict(content["optimizer"])
    model.train()
    losses = []
    for i, (x, y) in enumerate(batches(config)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(content["iter_num"] + i, config)
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def continue_ours(found: Path, config: TrainConfig) -> list[float]:
    config = config.model_copy(update={"device": "cpu", "dtype": "float32"})
    train_step = TrainStep(
        config,
        SINGLE_PROCESS,
        plan_layout(config, SINGLE_PROCESS, training_bytes(config)),
        torch.float32,
        init=False,
    )
    train_step.load(found, {})
    assert read_moments(found)
    state, _ = checkpoint.load_state(found)
    return [
        train_step.step(state.step + i, [(x.numpy(), y.numpy())]).loss
        for i, (x, y) in enumerate(batches(config))
    ]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def report(what: str, worst: float, allowed: float) -> None:
    print(f"{what}: largest difference {worst:.2e} (allowed {allowed:.0e})")
    assert worst <= allowed, what


if __name__ == "__main__":
    main()
