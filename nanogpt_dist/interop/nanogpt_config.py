"""nanoGPT's config/*.py as settings: assignments are read as literals. No torch.

Nothing is executed.
"""

import ast
import operator
import warnings
from pathlib import Path
from typing import Any

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.errors import ConfigError, MissingInputError
from nanogpt_dist.storage.durable import read_small, shown

# What train.py of nanoGPT sets where a config does not, and our defaults do otherwise.
DEFAULTS: dict[str, Any] = {"lr_decay_iters": 600_000, "log_interval": 1}
# Flags of nanoGPT's without one here, and what there is in their place.
ELSEWHERE = {
    "eval_only": "to evaluate is a command: nanogpt eval, with a run, a preset or --init-from",
    "backend": "the device chooses it: nccl on GPUs, gloo on CPUs",
    "start": "what a sample goes on from is --prompt TEXT or --prompt FILE:path",
}
MOST_BYTES = 1 << 20  # of a config
OPERATORS = {
    **{
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
    },
    **{ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow},
}


def read(path: Path) -> dict[str, Any]:
    """The settings in a config of nanoGPT's, under our names and with nanoGPT's own defaults.

    Raises MissingInputError; ConfigError where an assignment is not a literal, or arithmetic with
    literals.
    """
    return {**DEFAULTS, **to_our_settings(_assignments(path))}


def only_evaluates(path: Path) -> bool:
    """Whether a config of nanoGPT's sets eval_only. Raises as read()."""
    return bool(_assignments(path).get("eval_only"))


def _assignments(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingInputError(f"{shown(path)} does not exist or is not a file; check the path")
    data = read_small(path, MOST_BYTES)
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes, of a file of others
            tree = ast.parse(data.decode("utf-8-sig"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # nested too deep
        raise ConfigError(
            f"{shown(path)} cannot be read as Python: {str(error) or 'nested too deep'}"
        ) from None
    found: dict[str, Any] = {}
    for statement in tree.body:
        where = f"{shown(path)}:{statement.lineno}"
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
            continue
        if not (
            isinstance(statement, ast.Assign)
            and all(isinstance(each, ast.Name) for each in statement.targets)
        ):
            raise ConfigError(
                f"{where} is no assignment NAME = VALUE; configs are read, not executed"
            )
        names = [each.id for each in statement.targets if isinstance(each, ast.Name)]
        try:
            value = _value(statement.value, found)
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            if names == ["wandb_run_name"]:  # mostly made from the clock
                continue
            raise ConfigError(
                f"{where}: {names[0]} is not a literal; write its value there"
            ) from None
        found.update(dict.fromkeys(names, value))
    return found


def to_our_settings(given: dict[str, Any]) -> dict[str, Any]:
    """nanoGPT's settings under our names; what is not one here is left out.

    As a config or a checkpoint has them.
    """
    kept = {
        name: value
        for name, value in given.items()
        if name in TrainConfig.model_fields and value is not None
    }
    if isinstance(name := kept.get("dataset"), str) and "/" not in name:
        kept["dataset"] = f"data/{name}"
    if isinstance(device := kept.get("device"), str):
        kept["device"] = device.partition(":")[0]
    for name in (
        "learning_rate",
        "min_lr",
        "weight_decay",
        "beta1",
        "beta2",
        "grad_clip",
        "dropout",
    ):
        if type(kept.get(name)) is int and abs(kept[name]) < 2**53:
            kept[name] = float(kept[name])
    return kept


def _is_text(statement: ast.stmt) -> bool:
    """A docstring or the like."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """A literal, the value of an earlier name, or arithmetic with such.

    Raises ValueError and what arithmetic does.
    """
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, known), _value(node.right, known)
        if not all(isinstance(side, int | float) and abs(side) < 2**53 for side in (left, right)):
            raise ValueError("no number")
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ValueError("too large")
        return OPERATORS[type(node.op)](left, right)
    return ast.literal_eval(node)
