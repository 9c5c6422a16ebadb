"""Token ids on disk, as one name: `from nanogpt_dist.shards import DataFolder`.

format.py     the header of a shard
writer.py     a stream of ids to shards
manifest.py   what a prepared folder holds, and where it came from
reader.py     a prepared folder, checked as it is opened and as it is read; over shard.py and files.py
documents.py  the documents of a split, whole and as a window sees them
verify.py     every byte against the manifest; over scan.py, which reads whole files in threads
importing.py  nanoGPT's and llm.c's files to a data folder, without a copy
"""  # noqa: E501

from nanogpt_dist.shards.format import SHARD_TOKENS, Header
from nanogpt_dist.shards.manifest import Manifest
from nanogpt_dist.shards.reader import DataFolder, Split
from nanogpt_dist.shards.verify import verify_folder
from nanogpt_dist.shards.writer import ShardWriter

__all__ = [
    "SHARD_TOKENS",
    "DataFolder",
    "Header",
    "Manifest",
    "ShardWriter",
    "Split",
    "verify_folder",
]
