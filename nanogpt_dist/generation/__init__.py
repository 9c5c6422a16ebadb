"""Text from a model: decoder.py has the cache of keys and values, sampling.py chooses the ids."""
