"""Nonsense for every command: arguments that nobody would type, and files with wrong bytes in them.

    python -m tests.faults.fuzz_commands --minutes 20 --seed 1

Each case runs in a folder of its own, in a forked process. What it must not end in: exit code 70, a
traceback, a line of more than 200 characters, or no end at all. Prints each such case; its seed
makes it again: --only SEED.
"""

import argparse
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.conftest import CLONE, TINY

CODES = {0, 2, 65, 66, 69, 73, 74, 75, 78}
LIMIT_S = 60
TRAIN = f"train --dataset data {' '.join(TINY)} --max-iters 3 --eval-interval 2"
COMMANDS = [
    *(
        f"{TRAIN} --out-dir out/b",
        "train out/a --max-iters 8",
        "train out/a/checkpoints/step-00000004 --out-dir out/c",
    ),
    *(
        "train mine.toml --out-dir out/d --max-iters 2",
        "train recipe.py --out-dir out/e --max-iters 1",
    ),
    f"{TRAIN} --init-from hf --out-dir out/f --block-size 16",
    *(
        "eval out/a --batch-size 4",
        "eval out/a --text text.txt --json",
        "eval out/a --tasks lambada=lambada.jsonl",
    ),
    *(
        "eval --init-from hf --dataset data",
        "sample out/a --max-new-tokens 4",
        "sample out/a --prompt FILE:text.txt --json",
    ),
    *(
        "sample --init-from hf --max-new-tokens 3 --stream",
        "sample out/a --num-samples 2 --top-k 3 --seed 1",
    ),
    *(
        "prepare text --source text.txt --tokenizer byte --out new",
        "prepare text --source lines.jsonl --out new",
    ),
    *(
        "prepare text --source . --tokenizer char --out new",
        "prepare text --source text.txt --tokenizer tok.json --out new",
    ),
    *(
        "prepare --mix text.txt=0.5,lines.jsonl=0.5 --tokenizer byte --out new",
        "prepare hf a/b --out new",
        "prepare --list",
    ),
    *(
        "import-shards raw_train.bin raw_val.bin --tokenizer byte --out new",
        "import nanogpt ckpt.pt --out-dir out/g",
    ),
    *(
        "import hf hf --out-dir out/h",
        "export hf out/a new",
        "export nanogpt out/a new.pt",
        "export llmc out/a new",
    ),
    *(
        "verify data",
        "verify out/a",
        "checkpoint list out/a",
        "checkpoint verify out/a",
        "checkpoint prune out/a --keep 1",
    ),
    *(
        "checkpoint pin out/a/checkpoints/step-00000004",
        "checkpoint consolidate out/a",
        "compare out/a out/a --json",
    ),
    *(
        "show params out/a",
        "show components gpt2",
        "show config mine.toml",
        "show full out/a --svg new.svg",
        "show data data",
    ),
    *(
        "show data data --document 0",
        "show attention out/a --text ab",
        "show checkpoint out/a",
        "compare out/a --plot new.png",
    ),
    *(
        "tokenizer train text.txt --vocab-size 260 --out new.json",
        "tokenizer compare byte tok.json text.txt",
    ),
    *(
        "launch --dry-run --nproc-per-node 2 train mine.toml",
        "launch --slurm --dry-run --nproc-per-node 2 train out/a",
    ),
    *(
        "launch --kubernetes --dry-run --nproc-per-node 1 --image a train",
        "bench data mine.toml --megabytes 1",
    ),
]
VALUES = [
    *(
        "-1",
        "0",
        "1",
        "1e999",
        "nan",
        "-0.0",
        "9" * 30,
        "0x10",
        "None",
        "true",
        "gpt2",
        "byte",
        "char",
        "bpe:300",
    ),
    *(
        "..",
        "../x",
        ".",
        "nowhere",
        "text.txt",
        "data",
        "out/a",
        "/dev/null",
        "/dev/full",
        "ü ★",
        "a b",
        "$(touch X)",
    ),
    *(
        "%s{0}",
        "a=b",
        ",",
        "=",
        ":",
        "a" * 5000,
        "\udcff",
        "\x1b[31m",
        "'",
        '"',
        "--",
        "-",
        "FILE:",
        "FILE:data",
        "*",
        "x=0.5,y=0.5",
    ),
    *(
        "s3://a/b",
        "step-00000004",
        "out/a/checkpoints",
        "config.toml",
        "\n",
        "1,2",
        "float16",
        "auto",
        "1x2",
        "[::1]:1",
    ),
]


def make_base(folder: Path) -> None:
    """A data set, a run, exports and texts for the commands to read."""
    words = [
        "to",
        "be",
        "or",
        "not",
        "that",
        "is",
        "the",
        "question",
        "whether",
        "nobler",
        "in",
        "mind",
        "suffer",
    ]
    choose = random.Random(0)
    text = " ".join(choose.choices(words, k=4000)) + "\n"
    (folder / "text.txt").write_text(text)
    (folder / "lines.jsonl").write_text(
        "".join(json.dumps({"text": text[i : i + 90]}) + "\n" for i in range(0, 9000, 90))
    )
    (folder / "lambada.jsonl").write_text('{"text": "to be or not to be"}\n' * 3)
    (folder / "recipe.py").write_text(
        "dataset = 'x'\nn_layer = 1\nn_head = 1\nn_embd = 8\nblock_size = 8\n"
    )
    (folder / "raw_train.bin").write_bytes(b"\x20\x00" * 3000)
    (folder / "raw_val.bin").write_bytes(b"\x21\x00" * 300)
    for line in (
        "prepare text --source text.txt --tokenizer bpe:270 --out data",
        f"{TRAIN} --out-dir out/a --max-iters 4 --no-tensorboard",
        "export hf out/a hf",
        "export nanogpt out/a ckpt.pt",
        "tokenizer train text.txt --vocab-size 260 --out tok.json",
    ):
        subprocess.run(
            [sys.executable, CLONE / "nanogpt", *line.split()],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    kept = (folder / "out/a/config.toml").read_text()
    (folder / "mine.toml").write_text(kept)


def damage(folder: Path, choose: random.Random) -> str:
    """Change one file of the case; what was done."""
    path = choose.choice(
        [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
    )
    data = path.read_bytes()
    way = choose.choice(
        [
            "flip",
            "cut",
            "empty",
            "text",
            "json",
            "zeros",
            "gone",
            "folder",
            "link",
            "double",
            "word",
        ]
    )
    if way in ("gone", "folder", "link"):
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif way == "link":
            path.symlink_to(path.name)
    else:
        spoilt = bytearray(data)
        for _ in range(choose.randint(1, 8)):
            if spoilt and way == "flip":
                spoilt[choose.randrange(len(spoilt))] ^= 1 << choose.randrange(8)
        at = choose.randrange(len(data) + 1)
        numbers = [
            b"-1",
            b"1e999",
            b"null",
            b"[]",
            b"{}",
            b'"x"',
            b"99999999999999999999",
            b"NaN",
            b"true",
        ]
        new = {
            "flip": bytes(spoilt),
            "cut": data[:at],
            "empty": b"",
            "text": b"\xff\xfe nonsense \x00 \xf0\x9f\x99\x82\n" * 3,
            "json": choose.choice(numbers),
            "zeros": bytes(len(data)),
            "double": data + data,
            "word": data[:at] + choose.choice(numbers) + data[at + choose.randint(0, 3) :],
        }[way]
        path.write_bytes(new)
    return f"{way} {path.relative_to(folder)}"


def arguments(choose: random.Random) -> list[str]:
    """A command line, mostly a little wrong."""
    words = choose.choice(COMMANDS).split()
    for _ in range(choose.choice([0, 1, 1, 1, 2, 3])):
        at = choose.randrange(1, len(words) + 1) if len(words) > 1 else 1
        way = choose.choice(["value", "value", "value", "drop", "insert", "twice", "flag"])
        if way == "value" and at < len(words):
            words[at] = choose.choice(VALUES)
        elif way == "drop" and at < len(words):
            del words[at]
        elif way == "insert":
            words.insert(at, choose.choice(VALUES))
        elif way == "twice" and at < len(words):
            words.insert(at, words[at])
        else:
            words.insert(
                at,
                choose.choice(
                    [
                        "--json",
                        "--best",
                        "--fresh",
                        "--limit",
                        "--seed",
                        "--dtype",
                        "--device",
                        "--out",
                    ]
                ),
            )
    return words


def run(words: list[str], folder: Path) -> tuple[int, str]:
    """Exit code (-1: no end) and what was written, of `nanogpt WORDS` in a forked process."""
    out = folder.parent / "out.txt"
    pid = os.fork()
    if not pid:
        os.setsid()
        os.chdir(folder)
        os.environ |= {
            "HOME": str(folder),
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "80",
        }
        fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        sys.argv = ["nanogpt", *words]
        code = 99
        try:
            from cli.main import main

            code = main()
            sys.stdout.flush()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    deadline = time.monotonic() + LIMIT_S
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = -1
            break
        time.sleep(0.005)
    return code, out.read_text(errors="replace")


def case(base: Path, seed: int) -> tuple[list[str], str, int, str]:
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place) / "case"
        shutil.copytree(base, folder, symlinks=True)
        words, what = arguments(choose), ""
        if choose.random() < 0.6:
            what = damage(folder, choose)
            if choose.random() < 0.7:  # then let the command be right
                words = choose.choice(COMMANDS).split()
        code, said = run(words, folder)
    return words, what, code, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    import datasets  # noqa: F401  once, for all cases
    import torch

    import prepare.build  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-base-") as place:
        base = Path(place)
        make_base(base)
        if given.only is not None:
            print(*case(base, given.only), sep="\n")
            return 0
        deadline, codes, bad = time.monotonic() + 60 * given.minutes, Counter[int](), 0
        seed = given.seed * 1_000_000
        while time.monotonic() < deadline:
            words, what, code, said = case(base, seed)
            codes[code] += 1
            last = said.splitlines()[-1] if said.splitlines() else ""
            if (
                code not in CODES
                or "Traceback" in said
                or (last.startswith("nanogpt: error") and len(last) > 200)
            ):
                bad += 1
                print(
                    f"--only {seed}: {code}: nanogpt {shlex.join(words)[:300]} ({what}): "
                    f"{last[:300]}",
                    flush=True,
                )
            seed += 1
        print(f"{sum(codes.values())} cases, {bad} bad; exit codes {dict(sorted(codes.items()))}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
