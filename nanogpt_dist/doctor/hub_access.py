"""The hub and its cache, as far as can be told without a request; tokens are never shown."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from nanogpt_dist import hub
from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine
from nanogpt_dist.errors import Exit, NanogptError
from nanogpt_dist.storage.durable import shown

ON = ("1", "on", "yes", "true")  # as huggingface_hub reads a variable


def check_hub(machine: Machine) -> Iterator[Check]:
    """Its address, the token, the cache, offline mode, tiktoken's cache."""
    yield from _check_client()
    yield from _check_cache(machine)
    yield from _check_tiktoken(machine)


def _check_client() -> Iterator[Check]:
    from importlib.metadata import version

    try:
        library = hub.hub_library()  # which refuses an address or a token that no request can have
    except NanogptError as error:
        what, _, todo = str(error).partition("; ")
        todo = todo.removeprefix("type: ").partition(", ")[0]
        todo = todo if todo.startswith("unset") else "unset HF_TOKEN"
        yield Check("hub", "error", what, todo, Exit.USAGE)
        return
    from huggingface_hub import constants

    there = library.get_token() is not None
    file = Path(constants.HF_TOKEN_PATH)
    token = "a token is there" if there else "no token, which public data do not need"
    if file.is_file() and file.stat().st_mode & 0o077:
        text = f"others may read the token in {shown(file)}"
        yield Check("hub", "warning", text, f"chmod 600 {shlex.quote(str(file))}")
        return
    text = f"huggingface_hub {version('huggingface_hub')}, {constants.ENDPOINT}, {token}"
    yield Check("hub", "ok", _without_credentials(text))


def _without_credentials(text: str) -> str:
    from nanogpt_dist.doctor.scrub import scrub_text

    return scrub_text(text)


def _check_cache(machine: Machine) -> Iterator[Check]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    name = next(
        (name for name in ("HF_HUB_CACHE", "HF_HOME") if name in machine.environment), "HF_HOME"
    )
    held = next(each for each in [cache, *cache.absolute().parents] if os.path.lexists(each))
    if not held.is_dir() or not os.access(held, os.W_OK | os.X_OK):
        text = f"the cache {shown(cache)} cannot be written"
        todo = f"export {name}={shlex.quote(str(Path.home() / 'hf-cache'))}"
        yield Check("hub cache", "error", text, todo, Exit.CANNOT_CREATE)
        return
    try:
        repos = [
            each for each in cache.iterdir() if each.name.startswith(("models--", "datasets--"))
        ]
    except OSError:
        repos = []
    text = f"{len(repos)} repositories in {shown(cache)}"
    offline = [
        name
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        if machine.environment.get(name, "").lower() in ON
    ]
    if offline and not repos:
        text = (
            f"{', '.join(offline)} is set, and nothing is in {shown(cache)}: no corpus, no weights"
        )
        yield Check("hub cache", "warning", text, f"unset {' '.join(offline)}")
    else:
        yield Check("hub cache", "ok", text + (f"; {', '.join(offline)} is set" if offline else ""))


def _check_tiktoken(machine: Machine) -> Iterator[Check]:
    """gpt2's vocabulary is shipped; tiktoken's others are fetched into this folder."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        folder = machine.environment.get(name)
        if folder and not Path(folder).is_dir():
            text = (
                f"{name}={folder[-60:]} is no folder: a vocabulary that was put there is not found"
            )
            yield Check("tiktoken cache", "warning", text, f"mkdir -p {shlex.quote(folder)}")
        elif folder:
            yield Check(
                "tiktoken cache", "ok", f"{len(os.listdir(folder))} files in {folder[-60:]}"
            )
