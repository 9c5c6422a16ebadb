"""What may change under a run for it to count as the one that is asked for. No torch."""

from collections.abc import Collection

from nanogpt_dist.config import TrainConfig, settings_where
from nanogpt_dist.training.schedule import is_wsd, rate_falls

# a resume does not read them, and yet the run is another
BEGINNING = ("dataset", "init_from", "init", "zero_init")
SAVING = ("save_interval", "always_save_checkpoint", "keep_every")
BY_DATA = ("vocab_size", "eot_id")  # the data set gives them, unless they are typed


def first_change(before: TrainConfig, now: TrainConfig, typed: Collection[str]) -> str | None:
    """The first setting by which `now` is another run than `before`, as "name OLD (now NEW)".

    typed: names of the settings that were given. None: it is the same run, or a longer one whose
    first steps are the same.
    """
    kept = [name for name in _fixed() if name not in BY_DATA or name in typed]
    for name in kept:
        was, wanted = getattr(before, name), getattr(now, name)
        if was != wanted:
            return f"{name} {was} (now {wanted})"
    was, wanted = before.max_iters, now.max_iters
    if was > wanted:
        return f"max_iters {was} (now {wanted})"
    if was < wanted and not _can_grow(now):
        return f"max_iters {was}, where its schedule ends (now {wanted})"
    return None


def _fixed() -> list[str]:
    """All settings but those that change no step, and those that only say how it is shared out."""
    free = {
        *settings_where(on_resume="ignore"),
        *settings_where(on_resume="refuse_global_batch"),
        *settings_where(scope="upkeep"),
        *SAVING,
    } - {*BEGINNING}
    names = [name for name in TrainConfig.model_fields if name not in free]
    return [*(name for name in names if name != "max_iters"), "global_batch_size"]


def _can_grow(config: TrainConfig) -> bool:
    """Whether a run with more max_iters has the same first steps, or goes back to before a decay.

    A rate that falls to max_iters has fallen too far, and would jump up.
    """
    if is_wsd(config) and config.lr_decay_iters is None:
        return True
    cools_down = config.optimizer == "muon" and config.muon_momentum_cooldown > 0
    return not cools_down and (not rate_falls(config) or config.lr_decay_iters is not None)
