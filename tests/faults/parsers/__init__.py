"""What tests/faults/fuzz_parsers.py throws at the readers of foreign files.

mutations.py   a good file made wrong: bytes, JSON, TOML, Python, and what is sealed, sealed anew
sandbox.py     calls in a child that may neither write elsewhere nor run anything, with limits
formats.py     a Parser: good files, how they are made wrong, and what reads them
data.py        readers of texts, token shards and what prepare keeps
models.py      readers of checkpoints, weights, tokenizers and settings
runs.py        readers of run folders, task files, the environment, other nodes and the hub
"""
