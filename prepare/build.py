"""From a corpus to a data folder, whose bytes depend on text, tokenizer and options only.

The folder is filled in units: each is encoded by some process of some rank, and recorded; rank 0
puts them together into shards meanwhile. Killed at any time, the same call goes on with the units
that are missing.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from nanogpt_dist.data import SHARD_TOKENS, verify_folder
from nanogpt_dist.data.manifest import MANIFEST, Manifest
from nanogpt_dist.data.verify import in_short
from nanogpt_dist.errors import BadDataError, CannotCreateError, NanogptError, UsageError
from nanogpt_dist.storage.durable import shown, write_atomic
from nanogpt_dist.tokenizer import Tokenizer, load
from prepare.inputs import Earlier, Inputs, find_inputs
from prepare.options import PrepareConfig
from prepare.recipe import Recipe, difference
from prepare.request import CorpusRequest, output_folder, requested_corpora
from prepare.sources.files import SourceFiles
from prepare.sources.local import STDIN, refuse_changed, with_standard_input
from prepare.units.assemble import Assembler
from prepare.units.journal import (
    TOKENIZER,
    WorkFolder,
    claimed,
    clear,
    refuse_strangers,
    remove_leftovers,
)
from prepare.units.limits import Quotas
from prepare.units.manifest import key_of, make_manifest, pinned_sources, refuse_empty_split
from prepare.units.plan import Unit, plan, plan_key
from prepare.units.ranks import Ranks
from prepare.units.schedule import UnitEncoder, UnitProgress
from prepare.units.vocabulary import make_tokenizer


@dataclass(frozen=True)
class Machine:
    """Where and for whom it runs, which the ids do not show.

    progress: told what is being done, bytes of the sources done and in all, tokens. note: told what
    is left out, and what an earlier run has done. shard_tokens: ids in a shard.
    """

    ranks: Ranks = field(default_factory=Ranks)
    progress: Callable[[str, int, int, int], None] = lambda what, done, total, tokens: None
    note: Callable[[str], None] = lambda text: None
    shard_tokens: int = SHARD_TOKENS


def build(config: PrepareConfig, machine: Machine | None = None) -> Manifest | None:
    """Prepare a data folder and return its manifest; None in a rank that only encodes.

    A folder that was finished with the same inputs and options is verified and left as it is.
    Raises UsageError, MissingInputError, BadDataError, HubUnavailableError, CannotCreateError,
    StorageError.
    """
    machine, work = machine or Machine(), WorkFolder(output_folder(config))
    if machine.ranks.size > 1 and any(str(path) in STDIN for path in config.source or ()):
        raise UsageError(
            "several ranks cannot share standard input; write it to a file, and give that as "
            "--source"
        )
    with ExitStack() as stack:
        try:
            requests = requested_corpora(config)
            if config.source:
                sources = tuple(stack.enter_context(with_standard_input(config.source)))
                requests = [replace(requests[0], sources=sources)]
            run = _Run(stack, requests, work, config, machine)
            if machine.ranks.is_rank0:
                return run.lead()
            run.follow()
            return None
        except BaseException as error:
            machine.ranks.report(work, error)
            raise


@dataclass
class _Run:
    """One process at one folder. stack: closes what is open at the end."""

    stack: ExitStack
    requests: list[CorpusRequest]
    work: WorkFolder
    config: PrepareConfig
    machine: Machine

    def lead(self) -> Manifest:
        """Everything from the plan to the manifest."""
        if self.work.finished:
            return self._finished()
        self.work = self.stack.enter_context(claimed(self.work.out, self.config.fresh))
        if self.work.finished:  # another run has finished it just now
            return self._finished()
        self.work.shared = self.machine.ranks.size > 1
        inputs = self._inputs(key := self.work.read_plan()[0])
        self._go_on_with(key, inputs)
        work, recipe, source_files, units = self.work, inputs.recipe, *self._plan(inputs)
        tokenizer = self._tokenizer(key, recipe, units, source_files)
        with Assembler(work, recipe, tokenizer, units, self.machine.shard_tokens) as assembler:
            missing = assembler.missing()
            self.machine.ranks.announce(work)
            if len(missing) < len(units):
                self.machine.note(
                    f"going on: {len(units) - len(missing)} of {len(units)} units were done before"
                )
            meter = UnitProgress(work, units, self.machine.ranks, self.machine.progress)
            meter.start(missing)
            assembler.advance()
            share = self._share(recipe, tokenizer, source_files)
            for unit, tokens in share.encode(missing, assembler.quotas):
                meter.done(unit, tokens)
                assembler.advance()
                self.machine.ranks.look_for_failures(work)
            self.machine.ranks.wait_for_others(work, assembler.advance, meter.look)
            self._refuse_what_is_worthless(inputs, assembler)
            self._tell_parts_without_tokens(assembler)
            assembler.finish()
        manifest = make_manifest(work, recipe, tokenizer, assembler)
        write_atomic(work.out / MANIFEST, manifest.to_bytes())
        return manifest

    def follow(self) -> None:
        """Encode this rank's share of what is missing, until rank 0 needs no more."""
        refuse_strangers(self.work)
        if not self.machine.ranks.wait_for_plan(self.work):
            return
        try:
            key = self.work.read_plan()[0]
            inputs = self._inputs(key)
            self._follow_key(key, self._key(inputs.recipe))
            source_files, units = self._plan(inputs)
            quotas = Quotas(self.work, inputs.recipe, units)
            missing = [unit for unit in units if self.work.read(unit.index) is None]
            share = self._share(inputs.recipe, load(self.work.out / TOKENIZER), source_files)
            for _ in share.encode(missing, quotas):
                pass
        except NanogptError:
            if not self.work.finished:  # else the folder was tidied up under our hands
                raise

    def _inputs(self, key: Mapping[str, Any] | None) -> Inputs:
        earlier = Earlier(self.work.read_plan()[1], key["sources"] if key else [])
        return self._find_inputs(earlier)

    def _find_inputs(self, earlier: Earlier) -> Inputs:
        return find_inputs(self.requests, self.config, self.work.out, earlier, self.machine.note)

    def _plan(self, inputs: Inputs) -> tuple[list[SourceFiles], list[Unit]]:
        downloads = (
            self.work.downloads / str(self.machine.ranks.rank) if self.config.streaming else None
        )
        source_files = inputs.open(self.stack, downloads, self.machine.note)
        known = inputs.recipe.known
        return source_files, plan(inputs.recipe, source_files, known.cuttable if known else True)

    def _share(
        self, recipe: Recipe, tokenizer: Tokenizer, source_files: list[SourceFiles]
    ) -> UnitEncoder:
        return UnitEncoder(
            self.work,
            recipe,
            tokenizer,
            source_files,
            self.config.workers,
            self.machine.ranks,
            self.machine.note,
        )

    def _key(self, recipe: Recipe) -> dict[str, Any]:
        """All that decides units and shards, as JSON has it."""
        key = {**recipe.key(), **plan_key(), "shard_tokens": self.machine.shard_tokens}
        return dict(json.loads(json.dumps(key)))

    def _follow_key(self, old: Mapping[str, Any] | None, new: dict[str, Any]) -> None:
        """Take units of the plan `new` alone. Raises CannotCreateError where `old` differs."""
        if old is not None:
            if old["errors"] == "strict":  # what was done under it holds under any
                old = {**old, "errors": new["errors"]}
            if what := difference(old, new):
                advice = "finish it, add --fresh, or choose another --out"
                raise CannotCreateError(
                    f"{shown(self.work.out)} holds an unfinished prepare with {what}; {advice}"
                )
        decisive = {name: value for name, value in new.items() if name != "errors"}
        self.work.digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _go_on_with(self, key: Mapping[str, Any] | None, inputs: Inputs) -> None:
        """Write the plan; one that is there already has to be the same."""
        if key is None:
            clear(self.work)  # of whatever has lost its plan
        new = self._key(inputs.recipe)
        self._follow_key(key, new)
        self.work.write_plan(new, inputs.hashes)

    def _tokenizer(
        self,
        key: Mapping[str, Any] | None,
        recipe: Recipe,
        units: list[Unit],
        source_files: list[SourceFiles],
    ) -> Tokenizer:
        """The tokenizer of the folder; one that is made of the text is made once."""
        path = self.work.out / TOKENIZER
        if key is not None and recipe.known is None and path.exists():
            return load(path)
        total = sum(unit.bytes for unit in units)
        report = self.machine.progress
        made = make_tokenizer(
            recipe, units, source_files, lambda done: report("vocabulary", done, total, 0)
        )
        made.save(path)
        return made

    def _refuse_what_is_worthless(self, inputs: Inputs, assembler: Assembler) -> None:
        try:
            refuse_empty_split(inputs.recipe, assembler)
            for sources in inputs.local():
                refuse_changed(sources)
        except BadDataError:
            self.work.worthless = True
            raise

    def _tell_parts_without_tokens(self, assembler: Assembler) -> None:
        for index in assembler.quotas.without_tokens():
            request = self.requests[index]
            name = shown(request.sources[0]) if request.sources else request.corpus.name
            self.machine.note(
                f"{name} gave no tokens: its first document is larger than its part of the mix"
            )

    def _finished(self) -> Manifest:
        """The manifest of a finished folder, if it is what the recipe makes, and undamaged."""
        out = self.work.out
        try:
            manifest, _ = Manifest.read(out)
        except BadDataError as error:
            raise CannotCreateError(
                f"{error}; its folder is left alone: remove it, or choose another --out"
            ) from None
        recipe = self._find_inputs(Earlier({}, list(pinned_sources(manifest)))).recipe
        if what := difference(key_of(manifest, recipe), recipe.key()):
            raise CannotCreateError(f"{shown(out)} was prepared with {what}; choose another --out")
        if bad := verify_folder(out):
            raise BadDataError(
                f"{shown(out)} is damaged ({in_short(out, *bad[0])}); rm -r it, then run the same "
                "command"
            )
        if self.config.fresh:
            self.machine.note(
                f"{shown(out)} is finished, so --fresh has nothing to drop; rm -r it to make it "
                "again"
            )
        remove_leftovers(out)
        return manifest
