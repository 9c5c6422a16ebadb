"""The rules of the house: who may import whom, what leaves torch alone, and that importing does
nothing.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import CLONE

ALLOWED = {
    "nanogpt_dist": {"nanogpt_dist"},
    "prepare": {"prepare", "nanogpt_dist"},
    "launch": {"launch", "nanogpt_dist.config", "nanogpt_dist.errors"},
    "cli": {"cli", "launch", "prepare", "nanogpt_dist"},
}
# ng.prepare() is what `nanogpt prepare` does, and prepare/ is a package of its own.
EXCEPTIONS = {"nanogpt_dist/api/preparing.py": {"prepare"}}
TORCH_FREE = [
    "cli",
    "launch",
    "prepare",
    "nanogpt_dist/config",
    "nanogpt_dist/presets.py",
]
TORCH_FREE += [
    "nanogpt_dist/storage",
    "nanogpt_dist/data",
    "nanogpt_dist/tokenizer",
]
# of what others write, the part without weights
INTEROP = ("init_from", "nanogpt_config", "hf_tokenizer", "model_card")
TORCH_FREE += [
    "nanogpt_dist/hub.py",
    "nanogpt_dist/hub_retries.py",
    "nanogpt_dist/inspect/compare_runs.py",
    "nanogpt_dist/inspect/formulas.py",
    "nanogpt_dist/inspect/run_record.py",
    "nanogpt_dist/inspect/standing.py",
    "nanogpt_dist/inspect/text_plot.py",
    "nanogpt_dist/ladder/changes.py",
    "nanogpt_dist/ladder/scaling_law.py",
    "nanogpt_dist/ladder/sweep.py",
    *(f"nanogpt_dist/interop/{name}.py" for name in INTEROP),
]
# The rooms of nanogpt_dist, from the ground up: a room imports from its own floor and from below.
FLOORS = [
    {"errors", "config", "devices", "peaks", "transfers", "signals"}
    | {"gpu_errors", "hub", "hub_retries", "memory_limits", "presets"}
    | {"start_again", "thread_limits", "toml", "waiting"},
    {"storage", "tokenizer", "model"},
    {"data", "distributed", "checkpoint"},
    {"generation", "interop", "evaluation"},
    {"load_config", "training"},
    {"inspect", "bench", "api", "ladder", "estimate", "html_report", "doctor"},
]
# prepare's: what a corpus is made of, then the whole line.
PREPARE_FLOORS = [
    {"corpora", "sources", "readers"},
    {"options", "request", "recipe", "inputs"},
    {"units", "texts"},
    {"build"},
]
OURS = [path for folder in ALLOWED for path in sorted((CLONE / folder).rglob("*.py"))]


def imports(path: Path, everywhere: bool) -> set[str]:
    """Modules that a file imports: anywhere in it, or at its top level only, outside of any
    `if`.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(CLONE)))
def test_imports_go_one_way(path: Path) -> None:
    place = path.relative_to(CLONE)
    allowed = ALLOWED[place.parts[0]] | EXCEPTIONS.get(str(place), set())
    for name in imports(path, everywhere=True):
        if name.split(".")[0] in ALLOWED and name != "nanogpt_dist" and path.name != "__main__.py":
            assert any(name == base or name.startswith(base + ".") for base in allowed), name


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    parts = path.relative_to(CLONE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in OURS}
IMPORTS = {
    module: {
        name
        for name in imports(path, everywhere=True)
        # the package itself imports its front door only when it is asked for
        if name in MODULES and not module.startswith(name) and name != "nanogpt_dist"
    }
    for module, path in MODULES.items()
}


@pytest.mark.parametrize(
    ("package", "floors"), [("nanogpt_dist", FLOORS), ("prepare", PREPARE_FLOORS)]
)
def test_no_room_imports_from_a_floor_above(
    package: str,
    floors: list[set[str]],
) -> None:
    floor_of = {room: floor for floor, rooms in enumerate(floors) for room in rooms}

    def room(module: str) -> str | None:
        parts = module.split(".")
        return parts[1] if parts[0] == package and len(parts) > 1 else None

    rooms = {room(module) for module in MODULES} - {None, "__main__"}
    assert rooms <= floor_of.keys(), "say on which floor a new room stands"
    upward = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if room(module) in floor_of
        and room(name) in floor_of
        and floor_of[room(name)] > floor_of[room(module)]  # type: ignore[index]
    }
    assert not upward


def test_no_import_circle() -> None:
    """Neither among modules nor among the rooms of nanogpt_dist, imports in functions included."""
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError
    rooms: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        for name in names:
            ours, theirs = (".".join(one.split(".")[:2]) for one in (module, name))
            if ours != theirs and "nanogpt_dist" not in (ours, theirs):
                rooms.setdefault(ours, set()).add(theirs)
    TopologicalSorter(rooms).prepare()


@pytest.mark.parametrize("place", TORCH_FREE)
def test_torch_stays_out(place: str) -> None:
    target = CLONE / place
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    assert files
    for path in files:
        everywhere = not place.startswith("cli")  # commands import torch inside their functions
        assert not {name for name in imports(path, everywhere) if name.split(".")[0] == "torch"}, (
            path
        )


def test_help_imports_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; sys.argv = ['nanogpt', '--help']; from cli.main import main; main(); "
        "print({'torch', 'datasets', 'transformers', 'tiktoken'} & set(sys.modules), "
        "file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CLONE, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() == "set()", done.stderr


def test_a_model_is_built_without_torchs_compiler() -> None:
    """Which takes torch a second to load: evaluating and sampling do without, training has it for
    its optimizer.
    """
    code = (
        "import sys, torch; from nanogpt_dist.config import ModelConfig;"
        "from nanogpt_dist.model.gpt import GPT; import nanogpt_dist.checkpoint,"
        "nanogpt_dist.evaluation.report, nanogpt_dist.generation.sampling,"
        "nanogpt_dist.training.loop; torch.set_default_device('meta');"
        "GPT(ModelConfig(vocab_size=64)); print({'torch._dynamo', 'torch._inductor',"
        "'torch.distributed.tensor'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CLONE, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_no_pickle_and_no_code_from_data() -> None:
    for path in OURS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not names & {"eval", "exec", "compile"}, path
        calls = {
            ast.unparse(node.func): ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        }
        assert not calls.keys() & {
            "pickle.load",
            "pickle.loads",
            "pickle.dump",
            "numpy.load",
            "np.load",
        }, path
        # nanoGPT's own file is torch's: tensors and values only
        if path == CLONE / "nanogpt_dist/interop/nanogpt_ckpt.py":
            assert "weights_only=True" in calls["torch.load"]
        else:
            assert not calls.keys() & {"torch.load", "torch.save"}, path
        assert "pickle" not in imports(path, everywhere=True), path
