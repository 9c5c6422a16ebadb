"""Text to a data folder as a function call."""

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_dist.api.datasets import Dataset, open_dataset
from nanogpt_dist.errors import UsageError

if TYPE_CHECKING:
    from prepare.corpora import Corpus

HUB = ("config", "split", "revision")  # options of a repository on the hub


def prepare(
    corpus: str | None = None,
    *,
    out: str | Path | None = None,
    source: str | Path | Sequence[str | Path] = (),
    mix: str | None = None,
    workers: int = 1,
    note: Callable[[str], None] = warnings.warn,
    **options: Any,
) -> Dataset:
    """Turn a corpus into a data folder, and open it; a finished one is left as it is.

    corpus: a name of `nanogpt prepare --list`, OWNER/NAME on the hub, or text for files of yours.
    out: the folder; None: data/NAME. source: files or folders to read. mix: instead of a corpus,
    several with their parts of the tokens, as "A=0.7,B=0.3". workers: processes that encode; a
    script with more than one must begin under `if __name__ == "__main__":`. note: is told what is
    left out. options: the others of `nanogpt prepare` by their names: tokenizer, val_fraction,
    split_by, seed, column, eot, errors, max_documents, max_tokens; of the hub: config, split,
    revision, streaming; fresh.

    One process. Killed, the same call goes on where it was.

    Raises: UsageError, MissingInputError, BadDataError, HubUnavailableError, CannotCreateError,
    StorageError.

    >>> data = ng.prepare("text", source="texts/", tokenizer="bpe:4096", out="data/mine")
    """
    _add_to_path()
    from prepare.build import Machine, build
    from prepare.recipe import Options, parse_mix

    hub = {name: options.pop(name, None) for name in HUB}
    machine = {name: options.pop(name) for name in ("streaming", "fresh") if name in options}
    if unknown := options.keys() - Options.__dataclass_fields__.keys():
        raise UsageError(f"prepare has no option {', '.join(sorted(unknown))}")
    chosen = _corpus(corpus, mix, hub)
    sources = [source] if isinstance(source, str | Path) else source
    folder = Path(out or Path("data") / (chosen.name if chosen else "mix"))
    build(
        chosen or "text",
        folder,
        [Path(each) for each in sources],
        Options(**options),
        Machine(workers=workers, note=note, **machine),
        parse_mix(mix) if mix else None,
    )
    return open_dataset(folder)


def _corpus(name: str | None, mix: str | None, hub: dict[str, Any]) -> "Corpus | None":
    """What is to be prepared; None: a mix. Raises UsageError."""
    from prepare.corpora import find, from_hub, repository

    if mix:
        if name or any(hub.values()):
            raise UsageError("a mix names all that is read: leave corpus and the hub's options out")
        return None
    if name is None:
        raise UsageError('which corpus? for example ng.prepare("python-stdlib")')
    chosen = repository(name) if "/" in name else find(name)
    return from_hub(chosen, *(hub[each] for each in HUB)) if any(hub.values()) else chosen


def _add_to_path() -> None:
    """Make the package `prepare` importable, which a wheel carries in nanogpt_dist/_app."""
    package = Path(__file__).resolve().parents[1]
    place = str(package / "_app" if (package / "_app").is_dir() else package.parent)
    if place not in sys.path:
        sys.path.insert(0, place)
