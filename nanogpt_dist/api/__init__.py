"""The front door for Python: what the commands do, as functions.

    import nanogpt_dist as ng

    ng.prepare("python-stdlib")                          # text to shards of token ids
    data = ng.open_dataset("data/python-stdlib")         # documents, and the batches of any step
    result = ng.train("quickstart", max_iters=200)       # shards to checkpoints
    model = ng.load(result.checkpoint)                   # or a run, an export, a model of the hub
    print(model.generate("def read_", max_new_tokens=100, top_k=20))
    print(model.loss("import os\\n").bits_per_byte)

Importing it does nothing and loads no torch. What goes wrong is a NanogptError, whose text says
what to do.
"""

from nanogpt_dist.api.datasets import Dataset, DatasetSplit, open_dataset
from nanogpt_dist.api.models import Choices, Model, TextLoss, load
from nanogpt_dist.api.preparing import prepare
from nanogpt_dist.api.training import (
    branch_point,
    connected,
    decay_branch,
    train,
    with_rows_of_data,
)

__all__ = [
    "Choices",
    "Dataset",
    "DatasetSplit",
    "Model",
    "TextLoss",
    "branch_point",
    "connected",
    "decay_branch",
    "load",
    "open_dataset",
    "prepare",
    "train",
    "with_rows_of_data",
]
