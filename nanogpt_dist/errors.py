"""What can go wrong: one line (what, where, what to type next) and an exit code.

Raise these for the user's mistakes and the machine's faults; `assert` is for our own invariants.
"""

import errno
import re
from enum import IntEnum

from nanogpt_dist.gpu_errors import explain_gpu, is_lost_rank, is_out_of_memory

MAX_LINE = 200  # characters of an error line
WORD = 20  # characters of a word that goes whole where a line is cut
SHORT = 24  # characters that stay of a path or a quotation, at least
OUT_OF_MEMORY = "out of memory"  # so begins the line of whoever is short of it
WORDS = r"""(?<![^\s(=])(?:'[^']*'|"[^"]*")(?![^\s:;,.)])|\S+"""  # a quotation is one
IN_ADDRESS = re.compile(r"(?<=://)[^/\s\"'<>]*@")  # user:password@, token@
WARNINGS = 1  # exit code of `nanogpt doctor` where nothing is worse than a warning
INTERRUPTED = 130  # exit code of a command that Ctrl-C ends with nothing to save, as shells have it


class Exit(IntEnum):
    """Exit codes of every command, after BSD's sysexits.h where it has one; with their meaning."""

    meaning: str

    DONE = 0, "done"
    USAGE = 2, "wrong command line"
    BAD_DATA = 65, "bad data: truncated, edited, of another tokenizer"
    MISSING_INPUT = 66, "an input does not exist"
    HUB_UNAVAILABLE = 69, "the network or the hub is not there"
    BUG = 70, "a bug of ours, or out of memory; `--debug` shows the traceback"
    CANNOT_CREATE = 73, "output cannot be created: exists, locked by another run, not writable"
    IO_ERROR = 74, "input/output error, disk full"
    STOPPED = 75, "stopped cleanly; the same command resumes"
    CONFIG = 78, "a setting is wrong, or does not fit the run"

    def __new__(cls, code: int, meaning: str) -> "Exit":
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member


class NanogptError(Exception):
    """Base of all errors that end in one line; `code` is what the process returns.

    agreed: every rank of the run raises this same error, so that each may leave without telling the
    others. quiet: another rank prints the line.
    """

    code = Exit.BUG
    agreed = False
    quiet = False


class OutOfMemoryError(NanogptError):
    """The memory of the machine or of a GPU does not suffice; the rank that is short of it says so.

    falls_back: a smaller layout will be tried, on all ranks: whoever hears of it does the same.
    """

    def __init__(self, message: str, falls_back: bool = False) -> None:
        super().__init__(message)
        self.falls_back = falls_back


class UsageError(NanogptError):
    """The command line asks for something that does not exist or does not fit together."""

    code = Exit.USAGE
    agreed = True  # all ranks have the same command line


class BadDataError(NanogptError):
    """The content of a file is wrong: truncated, edited, of another tokenizer."""

    code = Exit.BAD_DATA


class DivergedError(BadDataError):
    """What a model computes is not finite. All ranks that judge it have the same figures."""

    agreed = True

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are not finite: its training has diverged; take an earlier "
            "checkpoint"
        )


class TextError(BadDataError):
    """A text that a tokenizer has no ids for; another document may have them."""


class MissingInputError(NanogptError):
    """A file or folder that the command reads does not exist."""

    code = Exit.MISSING_INPUT


class HubUnavailableError(NanogptError):
    """The hub could not be reached, or gave up serving."""

    code = Exit.HUB_UNAVAILABLE


class CannotCreateError(NanogptError):
    """Output cannot be created: it exists, is locked by another run, or not writable."""

    code = Exit.CANNOT_CREATE


class StorageError(NanogptError):
    """Reading or writing failed: disk full, input/output error."""

    code = Exit.IO_ERROR


class StoppedError(NanogptError):
    """Stopped cleanly on request, everything saved."""

    code = Exit.STOPPED
    agreed = True  # the ranks vote on it


class ConfigError(NanogptError):
    """A setting has a wrong value, or two settings contradict each other."""

    code = Exit.CONFIG
    agreed = True  # all ranks have the same settings


class LostPeerError(RuntimeError):
    """This rank waits for another one that is gone; Watchdog.leave() finds out which it is."""


class StuckError(LostPeerError):
    """This rank has waited for too long; the others may do so as well."""


def error_of(code: int, message: str) -> NanogptError:
    """The error that stands for an exit code: what one rank raised, on another.

    NanogptError for an unknown code.
    """
    kinds = NanogptError.__subclasses__()
    kind = {int(kind.code): kind for kind in kinds if kind.code != Exit.BUG}.get(code)
    return (kind or NanogptError)(message)


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and line for any error; those that nobody foresaw are bugs."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, NanogptError):
        return error.code, text
    if isinstance(error, OSError) and not is_out_of_memory(error):
        at = error.filename or (
            "standard output" if error.errno in (errno.ENOSPC, errno.EIO) else "the system"
        )
        return _explain_system(error, at)
    # Path.resolve() of Python < 3.13
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop from"):
        return (
            Exit.IO_ERROR,
            f"{text.removeprefix('Symlink loop from ')} is a link that leads to itself; remove it",
        )
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if is_out_of_memory(error):
        return (
            Exit.BUG,
            f"{OUT_OF_MEMORY}; lower --batch-size (and raise --gradient-accumulation-steps), with "
            "--no-join-micro-batches, or --num-samples",
        )
    if is_lost_peer(error):
        return Exit.IO_ERROR, (
            "lost another rank: see its message, or its exit code above (-9: killed, mostly for "
            "lack of memory: --auto-batch-size takes less); the same command resumes"
        )
    if isinstance(error, RuntimeError) and (line := explain_gpu(text)) is not None:
        return Exit.IO_ERROR, line
    return Exit.BUG, f"bug: {name}: {text}; please report it with what --debug prints"


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective of torch's failed: another rank is gone, or does not answer."""
    if isinstance(error, LostPeerError):
        return True
    text = str(error)
    # what torch raises for NCCL's failures, be they of this rank or of another, is a DistError, too
    if not isinstance(error, RuntimeError) or is_out_of_memory(error) or explain_gpu(text):
        return False
    return (
        type(error).__name__.startswith("Dist")
        or is_lost_rank(text)
        or any(
            sign in text
            for sign in ("gloo", "Connection closed by peer", "Connection reset by peer")
        )
    )


def _explain_system(error: OSError, name: str) -> tuple[int, str]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exit.IO_ERROR, f"no space left for {name}; free some and type the same again"
    if isinstance(error, FileNotFoundError):
        return Exit.MISSING_INPUT, f"{name} does not exist; check the path"
    if isinstance(error, PermissionError):
        return Exit.IO_ERROR, f"no permission for {name}; check its owner and mode, or name another"
    return Exit.IO_ERROR, f"{error.strerror or error}: {name}; check the path and the disk"


def one_line(text: str, at_most: int = MAX_LINE) -> str:
    """`text` on one line of printable characters, long paths and the reason shortened.

    What is wrong stands first and stays, and so does what to type, behind the last semicolon.
    """
    text = without_passwords(" ".join(text.split()))
    line = "".join(char if char.isprintable() else "\ufffd" for char in text)
    if len(line) <= at_most:
        return line
    what, semicolon, advice = line.rpartition("; ")
    if semicolon:
        what = _with_short_words(what, at_most - len("; " + advice))
        advice = _with_short_words(advice, at_most - min(len(what), at_most // 3) - len("; "))
        room = at_most - len("; " + advice)
        if room >= min(len(what), at_most // 3):
            return f"{clipped(what, room)}; {advice}"
    line = _with_short_words(line, at_most)
    if len(line) <= at_most:
        return line
    tail = line[-(at_most // 2) :]
    tail = tail[tail.index(" ") + 1 :] if " " in tail[:WORD] else tail
    return f"{clipped(line, at_most - len(tail) - 1)} {tail}"


def without_passwords(text: str) -> str:
    """`text` without the user:password@ or token@ of addresses in it: lines go to logs."""
    return IN_ADDRESS.sub("***@", text)


def clipped(text: str, at_most: int) -> str:
    """The start of `text` in `at_most` characters; it ends between two words, with a mark."""
    if len(text) <= at_most:
        return text
    start = text[: at_most - 2]
    if " " in start[-WORD:] and text[len(start)] != " ":  # a word that is cut through tells nothing
        start = start[: start.rindex(" ")]
    return f"{start.rstrip()} …"


def _with_short_words(text: str, at_most: int) -> str:
    """`text` with its longest paths and quotations cut, until it fits or all are short."""
    while len(text) > at_most:
        words = [word for word in re.finditer(WORDS, text) if _is_long(word[0])]
        if not words:
            break
        word = max(words, key=lambda word: len(word[0]))
        length = max(SHORT, len(word[0]) - (len(text) - at_most))
        text = text[: word.start()] + _shortened(word[0], length) + text[word.end() :]
    return text


def _is_long(word: str) -> bool:
    return len(word) > SHORT and (
        "/" in word or "\\" in word or word[0] in "'\"" or len(word) > 2 * SHORT
    )


def _shortened(word: str, length: int) -> str:
    """A path cut to its end, mostly from a name on; anything else to its start.

    The marks behind it stay.
    """
    quote = word[0] if word[0] in "'\"" else ""
    if "/" in word or "\\" in word:
        end = word[len(quote) + 1 - length :]
        name = re.search(r"[/\\]", end)
        return f"{quote}…{end[name.start() :] if name and name.start() < length // 2 else end}"
    marks = re.search(r"\W{0,2}$", word)
    behind = marks[0] if marks else ""
    return f"{word[: length - len(behind) - 1]}…{behind}"
