"""Token ids on disk, as one name: `from nanogpt_dist.shards import DataFolder`.

format.py    the header of a shard
writer.py    a stream of ids to shards
manifest.py  what a prepared folder holds, and where it came from
reader.py    a prepared folder, checked as it is opened and as it is read
"""

from nanogpt_dist.shards.format import SHARD_TOKENS, Header
from nanogpt_dist.shards.manifest import Manifest
from nanogpt_dist.shards.reader import DataFolder, Split, verify_folder
from nanogpt_dist.shards.writer import ShardWriter

__all__ = ["SHARD_TOKENS", "DataFolder", "Header", "Manifest", "ShardWriter", "Split", "verify_folder"]
