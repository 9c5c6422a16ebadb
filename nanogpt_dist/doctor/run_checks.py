"""What is wrong with a run, from its files alone: alive or dead, of any version, half-written."""

from pathlib import Path

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.run_facts import read_facts
from nanogpt_dist.doctor.run_losses import check_losses
from nanogpt_dist.doctor.run_resume import check_resume
from nanogpt_dist.doctor.run_settings import check_settings
from nanogpt_dist.doctor.run_speed import check_speed
from nanogpt_dist.doctor.run_standing import check_beginning, check_standing


def check_run(run: Path) -> list[Check]:
    """How `run` stands, and all that is wrong or odd about it; nothing is changed.

    Raises MissingInputError where `run` is no run folder.
    """
    facts = read_facts(run)
    if not facts.has_begun:
        return [check_beginning(facts)]
    return [
        *check_standing(facts),
        *check_resume(facts),
        *check_losses(facts),
        *check_speed(facts),
        *check_settings(facts),
    ]
