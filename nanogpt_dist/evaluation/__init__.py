"""How good a model is.

loss.py     the loss over windows of a split, on any number of ranks
report.py   what `nanogpt eval` finds of a checkpoint
tasks/      HellaSwag, LAMBADA, lm-eval's
"""
