"""The library behind `nanogpt`: GPT-2 pretraining, from shards to samples.

Importing it does nothing. The front door is nanogpt_dist/api.py: `import nanogpt_dist as ng`, then
ng.prepare, ng.open_dataset, ng.train and ng.load.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanogpt_dist.api import Dataset, Model, load, open_dataset, prepare, train

__version__ = "0.1.0"

__all__ = ["Dataset", "Model", "__version__", "load", "open_dataset", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """The front door's functions, imported when one is asked for."""
    if name in __all__:
        from nanogpt_dist import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
