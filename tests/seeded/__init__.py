"""Bugs on purpose: each NN-name.patch puts one into the tree, and a test must notice it.

    python -m tests.seeded.run [--only N] [--seed S]

tree.py is a copy of the tree to break, forked.py runs pytest in it.
"""
