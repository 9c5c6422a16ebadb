"""lm-eval's tasks: its `LM`, with our scorer and sampler behind it. Needs the extra `eval`.

All ranks see all requests and share them out below lm-eval, which takes them for one process: so
the figures are the same on any number of ranks, with whatever lm-eval makes of them.

Source: Gao et al., "A framework for few-shot language model evaluation" (lm-eval); it encodes and
cuts as it does for transformers' models.
"""

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanogpt_dist.errors import (
    BadDataError,
    ConfigError,
    HubUnavailableError,
    MissingInputError,
    UsageError,
)
from nanogpt_dist.evaluation.tasks.scoring import Scorer
from nanogpt_dist.generation import sampling
from nanogpt_dist.generation.decoder import Decoder
from nanogpt_dist.hub import hub_library
from nanogpt_dist.storage.durable import read_small

FEWSHOT_SEED = 1234  # as its command has it
MAX_GENERATED = 256  # tokens, where a task does not say
# how a task says it; the first counts
MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def run(names: list[str], scorer: Scorer, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """{task: {metric: value}} of lm-eval's tasks, by name or as a PATH.yaml of one's own.

    Raises ConfigError where lm-eval is not installed, UsageError for a task that it does not have,
    MissingInputError, HubUnavailableError where a task's data cannot be had.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tasks = scorer.world.local_rank0_first(lambda: _load(names))
    import lm_eval

    # Its simple_evaluate would look at the machine and the git repository with commands of the
    # shell.
    found = lm_eval.evaluate(
        _model(scorer), tasks, limit=limit, bootstrap_iters=0, log_samples=False
    )
    assert found is not None
    return {task: _figures(figures) for task, figures in found["results"].items()}


def _load(names: list[str]) -> dict[Any, Any]:
    """lm-eval's tasks by name, and by group where they have one, with their data."""
    hub_library()
    try:
        from lm_eval.tasks import TaskManager, get_task_dict
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs lm-eval ({error}): type pip install 'nanogpt-dist[eval]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    local = {name: _local(name) for name in names if name.endswith((".yaml", ".yml"))}
    manager = TaskManager(include_path=[str(folder) for folder, _ in local.values()] or None)
    wanted = [local[name][1] if name in local else name for name in names]
    if unknown := [task for task in wanted if task not in set(manager.all_tasks)]:
        raise UsageError(
            f"lm-eval has no task {unknown[0]}; `lm-eval ls tasks` lists them, or give PATH.yaml"
        )
    try:
        tasks = get_task_dict(wanted, manager)
    except Exception as error:  # of datasets, of the hub's client, of a task's own code
        where = ", ".join(wanted)[:40]
        raise HubUnavailableError(
            f"the data of {where} cannot be had: {type(error).__name__}: {error}"
        ) from error
    for task in _leaves(tasks):
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


def _leaves(tasks: dict[Any, Any]) -> Iterator[Any]:
    for value in tasks.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def _local(name: str) -> tuple[Path, str]:
    """Folder and task name of a task file."""
    import yaml

    path = Path(name)
    if not path.is_file():
        raise MissingInputError(f"{name} does not exist or is not a file; check the path")
    try:
        lines = read_small(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadDataError(
            f"{name} is not UTF-8 at byte {error.start}; convert it with iconv"
        ) from None
    # One line only: the rest may have tags of lm-eval's own.
    line = next((line for line in lines if line.startswith("task:")), "task:")
    try:
        task = yaml.safe_load(line)["task"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
        task = None
    if not isinstance(task, str):
        raise UsageError(f"{name} has no line task: NAME; see lm-eval's guide to tasks")
    return path.resolve().parent, task


def _figures(figures: dict[str, Any]) -> dict[str, Any]:
    """lm-eval calls a metric "acc,none"; the filter's name stays where it is another."""
    return {
        key.removesuffix(",none"): value
        for key, value in figures.items()
        if key not in ("alias", "name")
        and not key.split(",")[0].endswith("_stderr")
        and isinstance(value, int | float)
    }


def _model(scorer: Scorer) -> Any:
    """The adapter; lm-eval's base class is there only once lm-eval is imported."""
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    class NanogptLM(TemplateLM):
        """A model of ours as lm-eval sees one."""

        @property
        def eot_token_id(self) -> int:
            return sampling.encode_prompt("", scorer.tokenizer)[0]

        @property
        def max_length(self) -> int:
            return scorer.model.config.block_size

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            **_: Any,
        ) -> list[int]:
            return scorer.tokenizer.encode(string).tolist()

        def _loglikelihood_tokens(
            self,
            requests: list[tuple[tuple[str, str], list[int], list[int]]],
            **_: Any,
        ) -> list[tuple[float, bool]]:
            scores = scorer([(context, following) for _, context, following in requests])
            return [(score.log_likelihood, score.greedy) for score in scores]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            counts, windows = [], []
            for (text,) in (request.args for request in requests):
                rolling = utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.eot_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
                some = [utils.make_disjoint_window(window) for window in rolling]
                counts.append(len(some))
                windows += some
            scores = iter(scorer(windows))
            return [sum(next(scores).log_likelihood for _ in range(count)) for count in counts]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            """Each rank writes every size-th text, and in the end tells the others."""
            world, decoder = scorer.world, Decoder(scorer.model, scorer.tokenizer.n_vocab)
            asked = _asked([request.args for request in requests], scorer)
            with world.raise_on_all_ranks():
                mine = [_write(decoder, scorer, *each) for each in asked[world.rank :: world.size]]
            each = [json.loads(texts) for texts in world.gather_texts(json.dumps(mine))]
            return [each[i % world.size][i // world.size] for i in range(len(requests))]

    return NanogptLM()


def _asked(
    requests: list[tuple[str, dict[str, Any]]],
    scorer: Scorer,
) -> list[tuple[list[int], sampling.Settings, int]]:
    """Ids to go on from, how, and the how-manieth of equal requests each is. Raises ConfigError.

    As lm-eval does it for transformers' models: a prompt keeps what max_gen_toks leaves of
    block_size.
    """
    block_size, cut, seen = scorer.model.config.block_size, 0, Counter[str]()
    found = []
    for context, how in requests:
        settings = _settings(how, block_size)
        ids, room = (
            sampling.encode_prompt(context, scorer.tokenizer),
            block_size - settings.max_new_tokens,
        )
        cut += len(ids) > room
        same = json.dumps([context, how], default=str)
        found.append((ids[-room:], settings, seen[same]))
        seen[same] += 1
    if cut and scorer.world.is_rank0:
        print(
            f"warning: {cut} of {len(requests)} prompts lose their beginning: block_size "
            f"{block_size} has no room for them and max_gen_toks",
            file=sys.stderr,
        )
    return found


def _settings(how: dict[str, Any], block_size: int) -> sampling.Settings:
    """What generation_kwargs ask for: greedy unless they say do_sample, or a temperature.

    Raises ConfigError.
    """
    until = how.get("until") or []
    stops = tuple(str(stop) for stop in (until if isinstance(until, list) else [until]) if stop)
    most, name = next(
        ((how[name], name) for name in MOST if how.get(name) is not None), (MAX_GENERATED, MOST[0])
    )
    drawn = how.get("do_sample")
    try:
        temperature = float(how.get("temperature", 1.0 if drawn else 0.0) or 0.0)
        settings = sampling.Settings(
            max_new_tokens=int(most),
            temperature=0.0 if drawn is False else temperature,
            top_k=int(how.get("top_k") or 0) or None,
            top_p=None if how.get("top_p") is None else float(how["top_p"]),
            stop=stops,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the generation_kwargs of a task are no numbers: {error}"[:180]
        ) from None
    if not 0 < settings.max_new_tokens < block_size:
        raise ConfigError(
            f"a task's {name} is {most}, the model's block_size {block_size}: a prompt needs room, "
            f"too; write a {name} below {block_size} into its generation_kwargs (PATH.yaml)"
        )
    return settings


def _write(
    decoder: Decoder,
    scorer: Scorer,
    ids: list[int],
    settings: sampling.Settings,
    index: int,
) -> str:
    [row] = sampling.generate_ids(decoder, scorer.tokenizer, [ids], settings, [index])
    return sampling.to_sample("", row, scorer.tokenizer, settings.stop).text
