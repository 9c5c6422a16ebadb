"""What goes between a run and its disk, as one name: `from nanogpt_dist import storage`.

durable.py           single files, written whole or not at all
appending.py         files that grow by lines, never behind a link
user_file.py         output where a user says
sealed.py            folders that appear complete or not at all
manifest.py          manifest.json of a sealed folder: files, sizes, sha256
steps.py             the checkpoints of a run: name, newest good one, pruning
runlock.py           one run per folder
run_folder.py        the run folder: its paths and JSON files
events.py            what happened to a run, and when
shallow_json.py      JSON of others, never nested too deep to be written again
json_lines.py        files of JSON lines, read as they grow
eval_results.py      what eval found of a checkpoint
run_checkpoints.py   find a run's checkpoint: to resume, to sample, to branch from

None of them imports torch, so that a test can kill a save at each of its system calls.
"""

from nanogpt_dist.storage.durable import (
    free_bytes,
    fsync_and_hash,
    fsync_folder,
    has_room,
    make_folder,
    require_room,
    sha256_file,
    write_atomic,
)
from nanogpt_dist.storage.manifest import NewerFormatError, is_debris, read_manifest
from nanogpt_dist.storage.runlock import LOCK, RunLock, is_held
from nanogpt_dist.storage.sealed import begin, commit, discard, require_good, seal, verify, wait_for
from nanogpt_dist.storage.steps import (
    LATEST,
    PINS,
    checkpoints_to_prune,
    list_steps,
    newest_good,
    prune,
    read_latest,
    read_pins,
    step_at,
    step_name,
    step_of,
    sweep,
    write_latest,
    write_pins,
)
from nanogpt_dist.storage.user_file import probe_writable, write_user_file

__all__ = [
    "LATEST",
    "LOCK",
    "PINS",
    "NewerFormatError",
    "RunLock",
    "begin",
    "checkpoints_to_prune",
    "commit",
    "discard",
    "free_bytes",
    "fsync_and_hash",
    "fsync_folder",
    "has_room",
    "is_debris",
    "is_held",
    "list_steps",
    "make_folder",
    "newest_good",
    "probe_writable",
    "prune",
    "read_latest",
    "read_manifest",
    "read_pins",
    "require_good",
    "require_room",
    "seal",
    "sha256_file",
    "step_at",
    "step_name",
    "step_of",
    "sweep",
    "verify",
    "wait_for",
    "write_atomic",
    "write_latest",
    "write_pins",
    "write_user_file",
]
