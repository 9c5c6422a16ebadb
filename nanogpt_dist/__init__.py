"""The library behind `nanogpt`: GPT-2 pretraining, from shards to samples. Importing it does
nothing.
"""

__version__ = "0.1.0"
