"""Whether the settings of a run are odd: what reads them, rates, warm-up, batch, epochs, val split.

Sources: Brown et al. 2020, "Language Models are Few-Shot Learners", table 2.1 (peak rates of AdamW
by width); Jordan et al. 2024, "Muon" (0.02); Muennighoff et al. 2023, "Scaling Data-Constrained
Language Models" (up to 4 epochs the same text teaches almost as much as new text).
"""

import math
import shlex
from pathlib import Path

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.data import Manifest
from nanogpt_dist.doctor.check import Check, as_notes
from nanogpt_dist.doctor.run_facts import RunFacts, number
from nanogpt_dist.errors import NanogptError
from nanogpt_dist.storage import run_folder
from nanogpt_dist.training.odd_settings import READ_WITH, odd_settings

EPOCHS = 4
WITH_DROPOUT = 0.1  # from here on dropout is taken to be there for the epochs' sake
WARMUP = 0.25  # of the steps, at most
RATE_AT_768 = 6e-4  # AdamW's, GPT-3 small's; it falls about as 1 / width
MUON_RATE = 0.02
ODD_RATE = 16.0  # times the usual one, or more
ODD_ERROR = 0.02  # of the val loss, that its standard error is, or more


def check_settings(facts: RunFacts) -> list[Check]:
    """What is odd about the settings, or one Check that nothing is; of a finished run as notes."""
    if facts.config is None:
        return []
    tokens = _split_tokens(facts)
    epochs = _epochs(facts.config, tokens["train"]) if tokens else 0.0
    found = [
        *_unread_or_unreached(facts, facts.config),
        *_rates(facts, facts.config),
        *_warmup(facts, facts.config),
        *_batch(facts, facts.config, tokens),
        *_many_epochs(facts, facts.config, epochs, tokens),
        *_val_error(facts, facts.config, tokens),
    ]
    if facts.is_finished:  # they would matter to a training that is to come
        found = as_notes(found)
    told = f", {epochs:.3g} epochs" if tokens else ""
    return found or [Check("settings", "ok", f"nothing odd{told}")]


def _split_tokens(facts: RunFacts) -> dict[str, int]:
    """Tokens of train and val; {} where the data set cannot be read, which is told elsewhere."""
    assert facts.config is not None
    place = Path(run_folder.dataset_of(facts.path, facts.config.dataset))
    try:
        manifest, _ = Manifest.read(place)
    except (NanogptError, OSError):
        return {}
    return {name: split.tokens for name, split in manifest.splits.items()}


def _epochs(config: TrainConfig, tokens: int) -> float:
    return config.ramp.tokens_before(config.max_iters) / max(1, tokens)


def _unread_or_unreached(facts: RunFacts, config: TrainConfig) -> list[Check]:
    """The lines that a run prints at its start, each with what mends it."""
    found = []
    for line in odd_settings(config, epochs=0.0):
        flags: list[object] = []
        if "nothing reads" in line:
            for _, _, typed, others in READ_WITH:
                if line.endswith(typed):
                    for name in others:
                        flags += _default(config, name)
        elif "--warmup-iters" in line:
            flags = ["--warmup-iters", max(1, config.max_iters // 20)]
        elif "--lr-decay-iters" in line:
            flags = ["--lr-decay-iters", config.max_iters]
        what, _, _ = line.partition("; ")
        todo = facts.change_line(*flags) if flags else facts.fresh_line("other")
        found.append(Check("settings", "warning", what, todo))
    return found


def _default(config: TrainConfig, name: str) -> list[object]:
    """The flag that puts a setting back, [] where it is at its default."""
    default = TrainConfig.model_fields[name].default
    flag = f"--{name.replace('_', '-')}"
    return [flag, default] if getattr(config, name) != default and default is not None else []


def _rates(facts: RunFacts, config: TrainConfig) -> list[Check]:
    """A peak rate that is far from what others train such a width with."""
    muon = config.optimizer == "muon" and config.muon_scale == "original"
    name = "muon_learning_rate" if config.optimizer == "muon" else "learning_rate"
    rate: float = getattr(config, name)
    usual = MUON_RATE if muon else RATE_AT_768 * 768 / (config.base_width or config.n_embd)
    too_low = rate * ODD_RATE < usual and not config.init_from  # fine-tuning takes little steps
    if rate < usual * ODD_RATE and not too_low:
        return []
    flags = [f"--{name.replace('_', '-')}", f"{usual:.2g}"]
    if config.min_lr > usual and name == "learning_rate":
        flags += ["--min-lr", f"{usual / 10:.2g}"]
    return [
        Check(
            "settings",
            "warning",
            f"{name} {rate:g} is {'low' if too_low else 'high'}: {usual:.2g} is usual for "
            f"{config.optimizer} at a width of {config.n_embd}",
            facts.change_line(*flags),
        )
    ]


def _warmup(facts: RunFacts, config: TrainConfig) -> list[Check]:
    share = config.warmup_iters / config.max_iters
    if not config.decay_lr or share <= WARMUP or share >= 1:  # that is told above
        return []
    return [
        Check(
            "settings",
            "warning",
            f"warming up takes {config.warmup_iters:,} of {config.max_iters:,} steps, {share:.0%}",
            facts.change_line("--warmup-iters", max(1, config.max_iters // 20)),
        )
    ]


def _batch(facts: RunFacts, config: TrainConfig, tokens: dict[str, int]) -> list[Check]:
    """A step that reads the whole train split: all steps have nearly the same gradient."""
    piece = config.ramp.pieces[-1]
    if not tokens or piece.tokens < tokens["train"]:
        return []
    rows = max(1, tokens["train"] // 100 // piece.length)
    return [
        Check(
            "settings",
            "warning",
            f"a step reads {piece.tokens:,} tokens, the train split has {tokens['train']:,}",
            facts.fresh_line(
                "smaller-batch", "--batch-size", rows, "--gradient-accumulation-steps", 1
            ),
        )
    ]


def _many_epochs(
    facts: RunFacts, config: TrainConfig, epochs: float, tokens: dict[str, int]
) -> list[Check]:
    if epochs <= (100 if config.dropout >= WITH_DROPOUT else EPOCHS):
        return []
    steps = max(1, config.ramp.steps_of(EPOCHS * tokens["train"]))
    flags: list[object] = ["--dropout", 2 * WITH_DROPOUT]
    if config.dropout >= WITH_DROPOUT:
        flags = ["--max-iters", steps]
    if flags[0] == "--max-iters" and steps <= facts.step:
        todo = facts.fresh_line("shorter", *flags)
    else:
        todo = facts.change_line(*flags)
    return [
        Check(
            "settings",
            "warning",
            f"{epochs:,.1f} epochs of {tokens['train']:,} tokens: from {EPOCHS} on the same text "
            "teaches less and less",
            todo,
        )
    ]


def _val_error(facts: RunFacts, config: TrainConfig, tokens: dict[str, int]) -> list[Check]:
    """An evaluation too small to tell two losses apart."""
    if not facts.val or not tokens:
        return []
    loss = number(facts.val[-1], "val_loss")
    error = number(facts.val[-1], "standard_error")
    if not loss or error is None or error <= ODD_ERROR * loss:
        return []
    # the error falls with the square root of the windows
    wanted = math.ceil(config.eval_iters * (error / (ODD_ERROR / 2 * loss)) ** 2)
    windows = max(1, (tokens["val"] - 1) // config.block_size)
    text = f"val loss {loss:.4f} ± {error:.4f}: two evaluations can hardly be told apart"
    if windows > config.eval_iters * config.batch_size:
        most = math.ceil(windows / config.batch_size)
        todo = facts.change_line("--eval-iters", min(wanted, most))
    else:
        place = shlex.quote(f"{config.dataset}-larger-val")
        todo = f"nanogpt prepare CORPUS --val-fraction 0.1 --out {place}"
        text += f"; its split has {tokens['val']:,} tokens"
    return [Check("settings", "warning", text, todo)]
