"""Token ids on disk and in batches, as one name: `from nanogpt_dist.data import DataFolder`.

batches.py    which tokens each rank reads in each step: the order of the data
reader.py     a prepared folder, checked as it is opened and as it is read; over shard.py, files.py
writer.py     a stream of ids to shards
format.py     the header of a shard
manifest.py   what a prepared folder holds, and where it came from
documents.py  the documents of a split, whole and as a window sees them
verify.py     every byte against the manifest; over scan.py, which reads whole files in threads
importing.py  nanoGPT's and llm.c's files (foreign.py) to a data folder, without a copy; links.py
"""

from nanogpt_dist.data.format import SHARD_TOKENS, Header
from nanogpt_dist.data.manifest import Manifest
from nanogpt_dist.data.reader import DataFolder, Split
from nanogpt_dist.data.verify import verify_folder
from nanogpt_dist.data.writer import ShardWriter

__all__ = [
    "SHARD_TOKENS",
    "DataFolder",
    "Header",
    "Manifest",
    "ShardWriter",
    "Split",
    "verify_folder",
]
