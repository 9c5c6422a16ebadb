"""What the options ask for: the corpora, with their parts of a mix, and the folder to write."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from nanogpt_dist.data.manifest import DATA, SplitRule
from nanogpt_dist.errors import UsageError
from prepare.corpora import CORPORA, Corpus, find, from_hub, plain_name, repository
from prepare.options import PrepareConfig

HF = "hf:"  # in front of a repository in a mix
MIX = "mix"  # the name of a data set out of several corpora


@dataclass(frozen=True)
class CorpusRequest:
    """One corpus to prepare. sources: files or folders to read; weight: its part of a mix."""

    corpus: Corpus
    sources: tuple[Path, ...] = ()
    weight: float | None = None


def requested_corpora(config: PrepareConfig) -> list[CorpusRequest]:
    """The corpus that is asked for, or each of a mix. Raises UsageError."""
    if not config.mix:
        return [CorpusRequest(_one_corpus(config), tuple(config.source or ()))]
    if config.corpus or config.repo or config.source:
        raise UsageError(
            "--mix names all that is to be read, corpora or paths; leave CORPUS and --source out"
        )
    if config.config or config.split or config.revision:
        raise UsageError(
            "--config, --split and --revision are for one corpus; with --mix leave them out"
        )
    return [_part_of_mix(name, weight) for name, weight in parse_mix(config.mix).items()]


def output_folder(config: PrepareConfig) -> Path:
    """The folder to write: --out, or data/ and the name of what is prepared. Raises UsageError."""
    return config.out or DATA / (MIX if config.mix else _one_corpus(config).name)


def _one_corpus(config: PrepareConfig) -> Corpus:
    if config.corpus is None:
        raise UsageError(
            "which corpus? type: nanogpt prepare python-stdlib (no network) or nanogpt prepare "
            "--list"
        )
    if config.corpus == "hf":
        if config.repo is None:
            raise UsageError(
                "which repository? type for example: nanogpt prepare hf roneneldan/TinyStories"
            )
        corpus = repository(config.repo)
    elif config.repo is not None:
        raise UsageError(_one_at_a_time(config.corpus, config.repo[:60]))
    else:
        corpus = find(config.corpus)
    if config.split in get_args(SplitRule) and corpus.origin != "hub":
        raise UsageError(
            "--split names a split on the hub; for how to cut train from val type --split-by "
            f"{config.split}"
        )
    return from_hub(corpus, config.config, config.split, config.revision)


def _one_at_a_time(corpus: str, second: str) -> str:
    """What to do about a second argument, which only hf takes."""
    if corpus == "text":
        return f"files of yours are given as --source; type: nanogpt prepare text --source {second}"
    return f"{second}: one corpus at a time; several become one data set with --mix A=0.7,B=0.3"


def parse_mix(mix: str) -> dict[str, float]:
    """`a=0.7,b=0.3` as {"a": 0.7, "b": 0.3}. Raises UsageError unless they add up to 1."""
    weights: dict[str, float] = {}
    for part in mix.split(","):
        name, equals, number = part.strip().rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (name and equals and 0 < weight < 1) or name in weights:
            raise UsageError(
                f"--mix {mix[:60]}: {part[:40]!r} is not NAME=PART; type for example --mix "
                "a=0.7,b=0.3"
            )
        weights[name] = weight
    if len(weights) < 2 or not math.isclose(sum(weights.values()), 1, abs_tol=1e-6):
        raise UsageError(
            f"--mix {mix[:60]} has to name two corpora or more, and its parts have to add up to 1"
        )
    return weights


def _part_of_mix(name: str, weight: float) -> CorpusRequest:
    """A name of the catalogue, hf:OWNER/NAME, or a path."""
    if name in CORPORA and name != "text":
        return CorpusRequest(CORPORA[name], (), weight)
    if name.startswith(HF):
        return CorpusRequest(repository(name.removeprefix(HF)), (), weight)
    if not Path(name).exists() and not any(char in name for char in "*?["):
        near = "hf:OWNER/NAME for a repository of the hub, or a path"
        raise UsageError(
            f"--mix: {name[:60]!r} is neither a corpus (--list) nor there; give {near}"
        )
    local = replace(CORPORA["text"], name=plain_name(Path(name).name) or "text")
    return CorpusRequest(local, (Path(name),), weight)
