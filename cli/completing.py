"""What the tab key offers: presets, corpora, runs, checkpoints and data.

No torch.
"""

from collections.abc import Iterable
from pathlib import Path


def presets(incomplete: str) -> list[str]:
    """Names of presets."""
    from nanogpt_dist.presets import PRESETS

    return _beginning(PRESETS, incomplete)


def corpora(incomplete: str) -> list[str]:
    """Names that `prepare` takes."""
    from prepare.corpora import CORPORA

    return _beginning([*CORPORA, "text", "hf"], incomplete)


def runs(incomplete: str) -> list[str]:
    """Run folders under out/, or where the typed path leads.

    Behind a run's slash its checkpoints.
    """
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    if (folder / "config.toml").is_file():  # RUN/: its steps
        folder = folder / "checkpoints"
    if folder.name == "checkpoints":
        return _beginning(map(str, _folders(folder, "step-*")), str(folder) + "/")
    bases = {Path("out"), folder}
    found = [
        path for base in bases for path in _folders(base, "*") if (path / "config.toml").is_file()
    ]
    return _beginning(map(str, found), incomplete)


def targets(incomplete: str) -> list[str]:
    """Runs, and presets."""
    return [*runs(incomplete), *presets(incomplete)]


def data(incomplete: str) -> list[str]:
    """Prepared folders under data/, or where the path that is typed leads."""
    bases = {
        Path("data"),
        Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent),
    }
    found = [
        path for base in bases for path in _folders(base, "*") if (path / "manifest.json").is_file()
    ]
    return _beginning(map(str, found), incomplete)


def _folders(base: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in base.glob(pattern) if path.is_dir())
    except OSError:  # one that may not be read
        return []


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
