"""How text is drawn, with the defaults of `nanogpt sample`. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How to choose. temperature 0 takes the most probable token; top_k and top_p None are off."""

    max_new_tokens: int = 500
    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int = 1337
