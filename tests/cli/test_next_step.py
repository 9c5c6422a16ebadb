"""What commands tell to type next goes through a shell as it is printed, whatever the folders are called."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt_dist import tokenizer as tokenizers
from nanogpt_dist.errors import MissingInputError
from nanogpt_dist.runs import find_checkpoint
from tests.conftest import Run
from tests.nanogpt_dist.lineage.models import make_run

ODD = "my models $(touch made) é's"


def typed(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
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
    printed = typed(told.removeprefix("Next, in nanoGPT: ").replace("python sample.py", "printf %s"), tmp_path).stdout
    assert printed == f"--out_dir={(tmp_path / ODD).resolve()}"
    told = nanogpt("export", "nanogpt", "run", "mine.pt").stdout
    assert "sample.py --out_dir" not in told
    assert "no other name than ckpt.pt" in told


def test_a_folder_of_hugging_faces_is_told_from_a_run(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(MissingInputError, match=r"is a folder of Hugging Face's, no run; .* nanogpt import hf"):
        find_checkpoint(str(tmp_path / "hf"))
