# The same commands for people and for CI. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: quickstart test thorough campaign seeded mutants gpu setup check lint type fmt audit docs dist clean help

help:            ## list the targets
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 14

quickstart: $(STAMP)  ## the whole line on an embedded corpus: prepare, train on 2 ranks, eval, sample
	$(BIN)/nanogpt quickstart

test: $(STAMP)   ## all tests but the longest, two files at a time
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

thorough: $(STAMP)  ## the longest tests, two files at a time
	$(BIN)/python -m pytest -m thorough --numprocesses 2 --dist loadfile

setup: $(STAMP)  ## .venv with the toolkit (editable) and its development tools

campaign: $(STAMP) ## faults injected again and again, three quarters of an hour; docs/faults.md lists them
	$(BIN)/python -m tests.faults.campaign --minutes 45

seeded: $(STAMP) ## bugs on purpose, each into a copy of the tree: a test must notice it, ten minutes
	$(BIN)/python -m tests.seeded.run

mutants: $(STAMP) ## small changes of what promises hang on, as many as an hour takes: tests must notice
	$(BIN)/python -m tests.mutants --minutes 55

gpu: $(STAMP)    ## what only a GPU can settle: its tests, then its benchmark, half an hour
	$(BIN)/python -m pytest -m gpu tests/gpu; tests=$$?; \
	$(BIN)/python benchmarks/gpu.py && exit $$tests

check: lint type test thorough  ## what must be green before a commit

lint: $(STAMP)   ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)   ## static types
	$(BIN)/mypy

fmt: $(STAMP)    ## format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: $(STAMP)  ## what is installed beside .ci/lock.txt: versions, files, known advisories
	$(BIN)/python .ci/audit.py

docs: $(STAMP)   ## the docs site, into docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html

dist: $(STAMP)   ## sdist, and the wheel from it
	$(BIN)/python -m build --outdir dist .

clean:           ## remove what make made
	rm -rf $(VENV) build dist docs/_build docs/reference/generated *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)
