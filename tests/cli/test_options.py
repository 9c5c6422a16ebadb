"""What the command line is made of before Typer sees it."""

import json

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.options import nanogpt_style, rank, with_paths
from nanogpt_dist.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--out-dir=~/a", "--out-dir=/home/ada/a"),
        ("--out-dir ~/a", "--out-dir /home/ada/a"),
        ("~", "/home/ada"),
        ("--mix ~/a=0.5,~/b=0.5", "--mix /home/ada/a=0.5,/home/ada/b=0.5"),
        (
            "--tasks=lambada=~/l.jsonl,hellaswag=~/h.jsonl",
            "--tasks=lambada=/home/ada/l.jsonl,hellaswag=/home/ada/h.jsonl",
        ),
        ("--prompt FILE:~/a", "--prompt FILE:/home/ada/a"),
        ("--prompt ~/a", "--prompt ~/a"),
        ("--prompt=https://a.b", "--prompt=https://a.b"),
        ("a~b ~x a/~/b", "a~b ~x a/~/b"),
    ],
)
def test_a_tilde_is_the_home_folder_in_paths(
    typed: str,
    read: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert with_paths(typed.split()) == read.split()


def test_an_address_is_no_path() -> None:
    with pytest.raises(UsageError, match=r"^s3://a/b is an address, not a path"):
        with_paths(["verify", "s3://a/b"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-tie-embeddings"],
        ["--no-tied-head"],
        ["--no-tied-head", "--no-tie-embeddings"],
        nanogpt_style(["--tie_embeddings=False"]),
    ],
)
def test_a_setting_has_the_flag_of_its_alias_too(flags: list[str]) -> None:
    done = CliRunner().invoke(app, ["show", "config", "quickstart", "--json", *flags])
    settings = json.loads(done.stdout)
    assert settings["tied_head"] is False
    assert "tie_embeddings" not in settings


def test_both_flags_with_two_values_are_refused() -> None:
    line = ["show", "config", "quickstart", "--tie-embeddings", "--no-tied-head"]
    error = CliRunner().invoke(app, line).exception
    assert isinstance(error, ConfigError)
    assert "are the same setting" in str(error)


@pytest.mark.parametrize(
    ("number", "size", "expected"),
    [
        ("1", "2", 1),
        *(("2", "2", 0), ("x", "2", 0), ("", "", 0), ("1", "", 0)),
        *(("0", "9" * 5000, 0), ("9" * 5000, "2", 0), ("١", "٢", 0)),
    ],
)
def test_a_rank_is_one_where_torchrun_says_so(
    number: str, size: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", number)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert rank() == expected
