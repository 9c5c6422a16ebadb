"""What may be exported to a format that knows GPT-2 alone."""

from collections.abc import Iterable

from nanogpt_dist.config import ModelConfig
from nanogpt_dist.errors import ConfigError


def refuse_beyond_gpt2(config: ModelConfig, reader: str, has: Iterable[str] = ()) -> None:
    """Raise ConfigError for options that no GPT-2 has, but for those that the reader has."""
    if options := [name for name in config.beyond_gpt2() if name not in has]:
        raise ConfigError(
            f"{reader} has no {', '.join(options)}; give a run of GPT-2's architecture, such as "
            "one of shakespeare-char-cpu"
        )
