"""What a model is asked beside the loss on its own data.

scoring.py       log-likelihoods of continuations: what all of them are made of
jsonl_tasks.py   HellaSwag and LAMBADA from a jsonl file, bits per byte of a text
harness.py       every task of lm-eval's (extra `eval`), through an adapter
"""
