"""What commands tell to type next goes through a shell as it is printed, whatever the folders are
called.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import MissingInputError
from nanogpt_dist.storage.run_checkpoints import find_checkpoint
from tests.conftest import Run
from tests.nanogpt_dist.interop.models import make_run

ODD = "my models $(touch made) é's"


def typed(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.thorough
def test_what_import_and_export_tell_to_type_next(tmp_path: Path, nanogpt: Run) -> None:
    pytest.importorskip("transformers")
    make_run(tmp_path / ODD / "run", tokenizers.char(["ACGTa "]))
    told = nanogpt("export", "hf", f"{ODD}/run", f"{ODD}/hf").stdout
    done = typed(told.splitlines()[-1].removeprefix("Next: "), tmp_path)
    assert "generated_text" in done.stdout, done.stderr[-2000:]
    told = nanogpt("import", "hf", f"{ODD}/hf", "--out-dir", f"{ODD}/back").stdout
    done = typed(told.splitlines()[-1].removeprefix("Next: "), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(tokenizers.char(["ACGTa "]).decode([0]))
    assert not (tmp_path / "made").exists()


@pytest.mark.thorough
def test_nanogpts_sample_is_told_of_ckpt_pt_only(tmp_path: Path, nanogpt: Run) -> None:
    make_run(tmp_path / "run", tokenizers.char(["ACGT\n"]))
    told = nanogpt("export", "nanogpt", "run", f"{ODD}/ckpt.pt").stdout.splitlines()[-1]
    printed = typed(
        told.removeprefix("Next, in nanoGPT: ").replace("python sample.py", "printf %s"), tmp_path
    ).stdout
    assert printed == f"--out_dir={(tmp_path / ODD).resolve()}"
    told = nanogpt("export", "nanogpt", "run", "mine.pt").stdout
    assert "sample.py --out_dir" not in told
    assert "no other name than ckpt.pt" in told


def test_nanogpts_sample_is_not_told_of_ids_that_it_does_not_know(
    tmp_path: Path,
    nanogpt: Run,
) -> None:
    make_run(tmp_path / "run", tokenizers.byte())
    done = nanogpt("export", "nanogpt", "run", "out/ckpt.pt")
    assert "decodes with GPT-2's ids, this model has those of byte" in done.stderr
    assert "Next" not in done.stdout


def started(line: str, folder: Path, sign: str) -> None:
    """Start what would train for hours, and kill it once it says `sign`: then it has taken all that
    was typed.
    """
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    try:
        for printed in process.stderr:
            said.append(printed)
            if sign in printed:
                return
        pytest.fail(f"{line}: {''.join(said)}")
    finally:
        process.kill()
        process.wait()


def told_next(printed: str) -> list[str]:
    """The command lines behind "Next:" and "or, without a GPU:"."""
    found = (
        re.fullmatch(r"(?:Next|or, without a GPU): (.*)", line) for line in printed.splitlines()
    )
    return [match[1] for match in found if match]


@pytest.mark.thorough
def test_what_data_tells_to_type_next(tmp_path: Path, nanogpt: Run) -> None:
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "to be.txt").write_text("to be or not to be, that is the question\n" * 200)
    told = nanogpt(
        "tokenizer", "train", f"{ODD}/to be.txt", "--vocab-size", 270, "--out", f"{ODD}/my tok.json"
    ).stdout
    (line,) = told_next(told)
    first = typed(line, tmp_path)  # prepare text --source … --tokenizer …
    assert first.returncode == 0, first.stderr
    for name in ("train", "val"):
        (np.arange(2000) % 256).astype("<u2").tofile(tmp_path / ODD / f"{name}.bin")
    taken = nanogpt(
        "import-shards",
        f"{ODD}/train.bin",
        f"{ODD}/val.bin",
        "--tokenizer",
        "byte",
        "--out",
        f"{ODD}/ids",
    )
    for printed in (first.stdout, taken.stdout):
        large, small = told_next(printed)
        started(large, tmp_path, "starting at step 0")
        shutil.rmtree(tmp_path / "out")  # both lines mean the same folder
        started(small, tmp_path, "step 20/")
        shutil.rmtree(tmp_path / "out")
    done = nanogpt(
        "train",
        "quickstart",
        "--dataset",
        f"{ODD}/ids",
        "--out-dir",
        f"{ODD}/run",
        "--max-iters",
        2,
    )
    (line,) = told_next(done.stdout)
    assert typed(f"{line} --max-new-tokens 2", tmp_path).returncode == 0
    assert not (tmp_path / "made").exists()


def test_a_folder_of_hugging_faces_is_told_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(
        MissingInputError, match=r"is a folder of Hugging Face's, no run; .* nanogpt import hf"
    ):
        find_checkpoint(str(tmp_path / "hf"))
