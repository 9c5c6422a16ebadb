"""Small changes of the code, one at a time: the tests of what promises hang on should notice each.

    python -m tests.mutants [--seed S] [--minutes M] [--sample N] [--only PATH[:LINE]]

mutate.py changes a source, modules.py says which modules, and which tests are theirs. Of mutmut 3
and cosmic-ray neither drops a statement, an fsync say; mutmut leaves out functions that have a
decorator, cosmic-ray starts Python for each mutant, five seconds with torch. equivalent.toml has
the changes that change nothing, each with the reason.
"""
