"""A batch file for Slurm: runs `nanogpt launch` on every node, saves in time, requeues.

    Slurm                     batch file (first node)              nanogpt launch (every node)      ranks
    time is up, preempted --> USR1: scancel --signal=USR1 STEP --> asks its ranks to stop -------> save, all of them
    requeue <---------------- 75: scontrol requeue <-------------- 75 <--------------------------- exit

Depending on how a site tracks processes, a signal to the step reaches the launchers alone or every
process below them.
"""  # noqa: E501

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from launch import torchrun
from launch.job_options import Job
from nanogpt_dist.errors import CannotCreateError, ConfigError, Exit, MissingInputError, UsageError

MARK = "# Written by `nanogpt launch --slurm`, which writes it anew: edit a copy."
MARGIN_S = 60  # between the end of the ranks' time for saving and that of the job
EARLY_S = 60  # by which Slurm's signal may come too early
STRAGGLER_S = 600  # a node that still runs so long after the first has ended hangs: srun ends it
FIRST_PORT, PORTS = 10000, 20000  # below the ports that Linux gives out to whoever asks

BODY = """\
set -u
asked='' step=''
pass_on() {{ # until there is a step that takes it
    while kill -0 "$step" 2>/dev/null && ! scancel --signal=USR1 "{id}.0" 2>/dev/null; do sleep 1; done
}}
trap 'asked=yes; [ -z "$step" ] || pass_on' USR1 TERM

cd -- {folder} || exit {missing}
{exports}{tasks}
# The address of the first node, as the names of nodes need not resolve; and a port of this job's own.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
meet=${{address:-$first}}:$(({first_port} + SLURM_JOB_ID % {ports}))

srun --nodes={nnodes} --ntasks={nnodes} --ntasks-per-node=1 --cpus-per-task={cpus} \\
    --kill-on-bad-exit=0 --wait={straggler} \\
{command} &
step=$!
[ -z "$asked" ] || pass_on
while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends wait before its time
wait "$step"
code=$?

# Asked to stop before the launchers could listen (128 + the number of the signal): nothing is lost.
if [ -n "$asked" ] && {{ [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; }}; then code={stopped}; fi
if [ "$code" -eq {stopped} ] && scontrol show job --oneliner "{id}" | grep -q ' JobState=RUNNING '; then
    scontrol requeue "{id}" && exit 0
    echo "nanogpt: stopped and saved, but not requeued; type: sbatch "{again} >&2
fi
exit "$code"
"""  # noqa: E501


# a task of an array: the number of one of them is that of the whole array, which requeue would take
TASK_ID = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"


def file_name(job: Job) -> str:
    """Name of the batch file, in the current folder."""
    return f"{job.name}.sbatch"


def script(job: Job, environment: Mapping[str, str]) -> str:
    """The batch file. Of `environment`, that of the submitting process, PYTHONPATH is written down.

    Raises: UsageError for a value that sbatch would misread.
    """
    added = torchrun.environment(job.ranks, job.shutdown_timeout_s, environment)
    path = added.get("PYTHONPATH", environment.get("PYTHONPATH"))
    file = shlex.quote(str(job.folder / file_name(job)))
    body = BODY.format(
        id=TASK_ID if job.tasks else "$SLURM_JOB_ID",
        tasks=_tasks(job),
        folder=shlex.quote(str(job.folder)),
        missing=int(Exit.MISSING_INPUT),
        exports=f"export PYTHONPATH={shlex.quote(path)}\n" if path else "",
        first_port=FIRST_PORT,
        ports=PORTS,
        nnodes=job.nnodes,
        cpus=job.cpus,
        straggler=STRAGGLER_S,
        command=_command(job),
        stopped=int(Exit.STOPPED),
        again=f'"--array=$SLURM_ARRAY_TASK_ID "{file}' if job.tasks else file,
    )
    return "\n".join(
        ["#!/bin/bash", MARK, *(f"#SBATCH {line}" for line in _directives(job)), "", body]
    )


def seconds(time: str) -> int | None:
    """Length of an sbatch time limit (minutes, H:M:S, D-H …).

    None for no limit, or one that cannot be read.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        return None
    days, first, second, third = (int(part or 0) for part in match.groups())
    from_hours = match[1] is not None or match[4] is not None
    hours, minutes, rest = (first, second, third) if from_hours else (0, first, second)
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def write(path: Path, text: str) -> None:
    """Writes a batch file, over an earlier one of ours.

    Raises: CannotCreateError if another file is in the way, or the folder takes none.
    """
    try:
        if path.exists() and (
            not path.is_file() or MARK not in path.read_text(encoding="utf-8", errors="replace")
        ):
            raise CannotCreateError(
                f"{path} is not a file that launch wrote; rename it, or give another --job-name"
            )
        target = Path(os.path.realpath(path))  # a link stays one
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_bytes(os.fsencode(text))  # arguments need not be UTF-8
        os.replace(temporary, target)
    except OSError as error:
        raise CannotCreateError(
            f"cannot write {path}: {error.strerror}; go to a folder that takes it"
        ) from error


def submit(path: Path) -> str:
    """Hands a batch file to sbatch; the id of the job.

    Raises: MissingInputError without an sbatch; ConfigError with the reason for which it refused.
    """
    if shutil.which("sbatch") is None:
        raise MissingInputError(
            f"no sbatch here: go to a login node of the cluster and type: sbatch {path}"
        )
    done = subprocess.run(
        ["sbatch", "--parsable", str(path)], capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = re.sub(r"(?m)^sbatch: \w+: ", "", done.stderr).split("\n")
        reason = next((line for line in reversed(said) if line.strip()), f"code {done.returncode}")
        raise ConfigError(
            f"sbatch refused {path}: {reason}; change the options, or see: sbatch {path}"
        )
    return done.stdout.strip().split(";")[0]  # "12;CLUSTER" where there are several


def _directives(job: Job) -> list[str]:
    options, before_end_s = job.options, job.shutdown_timeout_s + MARGIN_S
    limit_s = seconds(options.time or "")
    if limit_s is not None and limit_s <= before_end_s + EARLY_S:
        raise UsageError(
            f"--time {options.time}: a job that is told {before_end_s} s before its end to save, "
            f"or up to {EARLY_S} s earlier, would do nothing else; give it more, or lower "
            "--shutdown-timeout"
        )
    given = {
        "job-name": job.name,
        "nodes": job.nnodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus or None,
        "mem": options.mem,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "array": f"0-{len(job.tasks) - 1}" if job.tasks else None,
        "output": "%x-%A_%a.out" if job.tasks else "%x-%j.out",
        "open-mode": "append",
        "signal": f"B:USR1@{before_end_s}",
    }
    for name in ("time", "partition", "account", "qos"):
        if given[name] is not None and not re.fullmatch(r"[\w.,:@+=/-]+", str(given[name])):
            raise UsageError(
                f"--{name} {given[name]!r}: a batch file takes no such characters; see: man sbatch"
            )
    lines = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*lines, "--requeue", *map(_passed_on, options.sbatch or [])]


def _passed_on(option: str) -> str:
    if not re.fullmatch(r"-[^\x00-\x1f\x7f]+", option):
        raise UsageError(
            f"--sbatch {option!r} is no option of sbatch: write it like --sbatch=--constraint=a100"
        )
    return option


def _command(job: Job) -> str:
    """What srun starts on every node, for a shell.

    With several nodes, a shell there adds the node's rank.
    """
    python = shlex.quote(sys.executable)
    start = f"{python} -m nanogpt_dist launch"
    if job.nnodes > 1:
        launch = """'exec "$0" -m nanogpt_dist launch --node-rank "$SLURM_NODEID" --rdzv-endpoint "$@"'"""  # noqa: E501
        start = f'bash -c {launch} \\\n    {python} "$meet"'
    if job.tasks:
        return f'    {start} {shlex.join(job.how)} "$@"'
    return f"    {start} {shlex.join(job.launch)}"


def _tasks(job: Job) -> str:
    """What each task of an array runs, as the shell's arguments; nothing for a job that is none."""
    if not job.tasks:
        return ""
    cases = [f"    {number}) set -- {shlex.join(task)} ;;" for number, task in enumerate(job.tasks)]
    return "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac", ""])
