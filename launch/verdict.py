"""What a command leaves for its launcher: how it ended.

torchrun returns 1 whatever its ranks return; the verdict says why.

The launcher names a file in the environment variable VARIABLE; the ranks write it, the launcher
reads it when all of them have ended. A restarted attempt writes a file of its own beside it, so
that no failure hides a later one.

    agreed      every rank came to the same end (a clean stop, a wrong setting): it stands, and the ranks exit 0, which
                keeps torchrun quiet and from restarting
    not agreed  one rank failed alone: the first of them is kept, and the rank exits with its code, upon which
                torchrun ends the others, and restarts them all if it may
"""  # noqa: E501

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "NANOGPT_VERDICT"


@dataclass(frozen=True)
class Verdict:
    """How a command ended.

    code: exit code; line: the error, without a line break; rank: which says so; agreed: whether all
    ranks say the same.
    """

    code: int
    message: str
    rank: int
    agreed: bool


def write(verdict: Verdict) -> bool:
    """Leaves `verdict` for the launcher, atomically; True if it is the one that stands now.

    Every rank may call it. Without a launcher, or when the file cannot be written, nothing happens
    and the answer is False: a verdict that is lost must not hide the error that it tells of.
    """
    if not os.environ.get(VARIABLE):
        return False
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    known = re.fullmatch("[0-9]{1,9}", attempt)
    path = _of_attempt(Path(os.environ[VARIABLE]), int(attempt) if known else 0)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
        if verdict.agreed:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # fails if the file exists: the first failing rank wins
    except OSError:
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def read(path: Path) -> Verdict | None:
    """The verdict of the latest attempt that left one at `path`; None if none did.

    Attempts may leave gaps.
    """
    found = [int(file.suffix[1:]) for file in path.parent.glob(f"{path.name}.[0-9]*")]
    verdicts = [_parse(_of_attempt(path, attempt)) for attempt in sorted([0, *found], reverse=True)]
    return next((verdict for verdict in verdicts if verdict), None)


def tell_run(run: Path) -> None:
    """Tell the launcher the run folder and its newest checkpoint; every rank may call it."""
    if not os.environ.get(VARIABLE):
        return
    place = _run_file(Path(os.environ[VARIABLE]))
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    with suppress(OSError):
        temporary.write_text(
            json.dumps([str(run.absolute()), newest_checkpoint(run)]), encoding="utf-8"
        )
        with suppress(FileExistsError):
            os.link(temporary, place)  # what was there when the first of them came
        temporary.unlink()


def progress(path: Path) -> str | None:
    """The newest checkpoint of the run named at `path`, if it had another one before.

    None otherwise.
    """
    try:
        run, before = json.loads(_run_file(path).read_text(encoding="utf-8"))
        now = newest_checkpoint(Path(run))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return now if now != before else None


def newest_checkpoint(run: Path) -> str | None:
    """What a run's status.json calls its newest checkpoint."""
    path = run / "status.json"
    try:
        status = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return str(status["checkpoint"]) if status["checkpoint"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _run_file(path: Path) -> Path:
    return path.with_name("run.json")


def _of_attempt(path: Path, attempt: int) -> Path:
    return path if attempt == 0 else path.with_name(f"{path.name}.{attempt}")


def _parse(file: Path) -> Verdict | None:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return Verdict(
            int(fields["code"]), str(fields["message"]), int(fields["rank"]), bool(fields["agreed"])
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
