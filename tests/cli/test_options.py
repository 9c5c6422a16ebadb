"""What the command line is made of before Typer sees it."""

import pytest

from cli.options import with_paths
from nanogpt_dist.errors import UsageError


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
