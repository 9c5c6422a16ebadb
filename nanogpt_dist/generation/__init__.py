"""Text from a model.

settings.py     how text is drawn, with the defaults; without torch
decoder.py      logits of the next token, with a cache of keys and values
static_step.py  one token of each row in static shapes, for CUDA graphs
sampling.py     which token is drawn, and the text that they make
"""
