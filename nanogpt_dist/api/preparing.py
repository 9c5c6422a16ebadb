"""Text to a data folder as a function call."""

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanogpt_dist.api.datasets import Dataset, open_dataset
from nanogpt_dist.errors import UsageError

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
    from pydantic import ValidationError

    from prepare.build import Machine, build
    from prepare.options import PrepareConfig
    from prepare.request import output_folder

    if unknown := options.keys() - PrepareConfig.model_fields.keys():
        raise UsageError(f"prepare has no option {', '.join(sorted(unknown))}")
    if mix and (corpus or any(options.get(name) for name in HUB)):
        raise UsageError("a mix names all that is read: leave corpus and the hub's options out")
    if not mix and corpus is None:
        raise UsageError('which corpus? for example ng.prepare("python-stdlib")')
    named = {"corpus": "hf", "repo": corpus} if corpus and "/" in corpus else {"corpus": corpus}
    folder = Path(out) if out else None
    sources = [Path(each) for each in ([source] if isinstance(source, str | Path) else source)]
    try:
        config = PrepareConfig(
            out=folder, source=sources or None, mix=mix, workers=workers, **named, **options
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(f"{problem['loc'][0]} = {problem['input']!r}: {problem['msg']}") from None
    build(config, Machine(note=note))
    return open_dataset(output_folder(config))


def _add_to_path() -> None:
    """Make the package `prepare` importable, which a wheel carries in nanogpt_dist/_app."""
    package = Path(__file__).resolve().parents[1]
    place = str(package / "_app" if (package / "_app").is_dir() else package.parent)
    if place not in sys.path:
        sys.path.insert(0, place)
