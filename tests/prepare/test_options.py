"""The options of `nanogpt prepare`, and the flags that are made of them."""

import typing
from typing import Any

import pytest
import typer
from pydantic import ValidationError

from cli.main import app
from nanogpt_dist.data import manifest
from prepare.options import FLAGS, PrepareConfig

ROOT: Any = typer.main.get_command(app)
FLAG_OF = {flag.name: flag for flag in ROOT.commands["prepare"].params}


@pytest.mark.parametrize("name", PrepareConfig.model_fields)
def test_each_option_is_a_flag_or_argument_with_its_help_and_default(name: str) -> None:
    field, flag = PrepareConfig.model_fields[name], FLAG_OF[name]
    extra: Any = field.json_schema_extra
    assert flag.help == field.description
    assert (flag.default or None) == (field.default or None)
    if extra["group"] in FLAGS:
        assert flag.opts == [f"--{name.replace('_', '-')}"]
        assert flag.rich_help_panel == extra["group"]


@pytest.mark.parametrize(
    ("name", "choices"),
    [("eot", manifest.Eot), ("split_by", manifest.SplitRule), ("errors", manifest.Errors)],
)
def test_choices_are_those_of_the_manifest(name: str, choices: Any) -> None:
    annotation = PrepareConfig.model_fields[name].annotation
    told = {choice for kind in typing.get_args(annotation) for choice in typing.get_args(kind)}
    assert (told or set(typing.get_args(annotation))) == set(typing.get_args(choices))


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"max_tokens": 0}, {"eot": "no"}, {"workers": 1025}, {"colum": "a"}]
)
def test_python_meets_the_same_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrepareConfig(**wrong)
