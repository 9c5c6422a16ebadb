"""Which settings, and which run, a name on the command line means."""

import os
import re
import shutil
from pathlib import Path

import pytest

from nanogpt_dist.config import read_toml, to_toml
from nanogpt_dist.data.manifest import Manifest
from nanogpt_dist.errors import ConfigError, MissingInputError
from nanogpt_dist.load_config import load
from nanogpt_dist.storage import run_folder


def test_a_run_folder_is_its_own_out_dir_however_it_is_spelt(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(trained, tmp_path / "deep" / "b")
    run = (tmp_path / "deep" / "b").resolve()
    # as older versions wrote it
    old = (run / "config.toml").read_text() + f'out_dir = "{trained}"\n'
    for text in ((run / "config.toml").read_text(), old):
        (run / "config.toml").write_text(text)
        monkeypatch.chdir(tmp_path)
        os.path.lexists("link") or Path("link").symlink_to(run)
        for name in (
            "deep/b",
            "deep/b/",
            str(run),
            "./deep/../deep/b",
            "deep/b/config.toml",
            "link",
            "link/config.toml",
        ):
            out_dir = load(name).out_dir
            assert out_dir is not None
            assert Path(out_dir).resolve() == run, name
        for folder, name in {run: ".", run / "checkpoints": "..", run.parent: "b"}.items():
            monkeypatch.chdir(folder)
            out_dir = load(name).out_dir
            assert out_dir is not None
            assert Path(out_dir).resolve() == run, name
            assert Path(out_dir).name == "b"
    assert load(str(run), {"out_dir": "elsewhere"}).out_dir == "elsewhere"


def test_the_data_of_a_run_is_found_from_another_folder(
    trained: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project, run = tmp_path / "project", tmp_path / "project" / "out" / "a"
    shutil.copytree(trained, run)
    settings = load(str(run)).model_copy(update={"dataset": "data/mine", "out_dir": None})
    (run / "config.toml").write_text(to_toml(settings))
    monkeypatch.chdir(tmp_path)
    assert load("project/out/a").dataset == "data/mine"  # nowhere: told as it is written
    shutil.copytree(corpus, project / "data" / "mine")
    assert load("project/out/a").dataset == str(project / "data" / "mine")
    assert load("project/out/a", {"dataset": "other"}).dataset == "other"
    monkeypatch.chdir(project)
    assert load("out/a").dataset == "data/mine"


def test_a_config_used_as_a_template_names_no_run(trained: Path, tmp_path: Path) -> None:
    for file in (
        trained / "config.toml",
        run_folder.checkpoints_of(trained) / "step-00000008" / "config.toml",
    ):
        assert "out_dir" not in read_toml(file)
        shutil.copy(file, tmp_path / "mine.toml")
        assert load(str(tmp_path / "mine.toml")).out_dir == "out/mine"
    (tmp_path / "mine.toml").write_text('out_dir = "runs/x"\n')  # written by hand
    assert load(str(tmp_path / "mine.toml")).out_dir == "runs/x"


def test_a_folder_that_has_not_begun_and_names_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('out_dir = "out/a"\n')
    with pytest.raises(ConfigError, match=r"has out_dir = 'out/a'; type --out-dir with"):
        load(str(tmp_path))
    assert load(str(tmp_path), {"out_dir": "out/b"}).out_dir == "out/b"


def test_folders_that_are_no_runs_say_what_to_type(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"type nanogpt train {trained}"):
        load(str(trained / "checkpoints"))
    with pytest.raises(ConfigError, match=r"has no config\.toml, so it is no run"):
        load(str(tmp_path))
    shutil.copytree(trained, tmp_path / "b")
    (tmp_path / "b" / "config.toml").unlink()
    with pytest.raises(
        ConfigError, match=r"has lost its config.toml: cp .*step-00000008/config.toml"
    ):
        load(str(tmp_path / "b"))


def test_a_run_or_checkpoint_that_is_not_there_is_no_unknown_preset(trained: Path) -> None:
    advice = re.escape(f"type nanogpt checkpoint list {trained}")
    with pytest.raises(MissingInputError, match=f"step-00000750 does not exist; {advice}$"):
        load(str(trained / "checkpoints" / "step-00000750"))
    with pytest.raises(MissingInputError, match=r"^out/nosuch does not exist; give a run"):
        load("out/nosuch")
    with pytest.raises(ConfigError, match="no preset gpt2-124; did you mean gpt2-124m"):
        load("gpt2-124")


def test_a_wrong_setting_of_a_file_is_named_with_it_and_not_what_was_typed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.toml"
    path.write_text('device = "gpu"\n')
    with pytest.raises(ConfigError, match=r"^batch_size = 0: input should be greater"):
        load("quickstart", {"batch_size": 0})
    with pytest.raises(ConfigError, match=r"^batch_size = 0: .*; /.*c\.toml: device = 'gpu': "):
        load(str(path), {"batch_size": 0})


def test_a_data_set_under_data_is_found_by_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "manifest.json").write_text("{}")
    with pytest.raises(MissingInputError, match=r"mine does not exist .*; data/mine is there"):
        Manifest.read(Path("mine"))
    with pytest.raises(MissingInputError, match=r"type: nanogpt prepare theirs, or"):
        Manifest.read(Path("data/theirs"))


def test_auto_over_a_preset_keeps_its_global_batch_and_a_number_ends_it(tmp_path: Path) -> None:
    plain, auto = load("modern-124m"), load("modern-124m", {"batch_size": "auto"})
    assert auto.auto_batch_size
    assert not plain.auto_batch_size
    assert auto == plain.model_copy(update={"auto_batch_size": True, "out_dir": auto.out_dir})
    path = tmp_path / "c.toml"
    path.write_text('batch_size = "auto"\ngradient_accumulation_steps = 8\n')
    assert load(str(path)).auto_batch_size
    assert load(str(path)).global_batch_size == 12 * 8
    number = load(str(path), {"batch_size": 6})
    assert (number.auto_batch_size, number.batch_size) == (False, 6)
    both = load(str(path), {"batch_size": 6, "auto_batch_size": True})
    assert (both.auto_batch_size, both.global_batch_size) == (True, 48)
    path.write_text(to_toml(auto))  # as a run's config.toml, with which the same command resumes
    assert load(str(path), {"batch_size": "auto", "out_dir": auto.out_dir}) == auto
    assert load(str(path), {"out_dir": auto.out_dir}) == auto
