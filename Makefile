# What .ci/run does, in steps.  PYTHON is the interpreter to use: make test PYTHON=python3.13
PYTHON ?= python3

.PHONY: help environment lint types test test-all one hash docs spelling benchmarks archives census ci clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

environment: ## install what tests, linters and the type checker need
	$(PYTHON) -m pip install --upgrade setuptools wheel pynose hypothesis freezegun ruff mypy

lint: ## ruff, both its checks and its format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: ## mypy --strict
	$(PYTHON) -m mypy --strict

test: ## the tests that a stranger waits for
	$(PYTHON) -m nose

test-all: ## all tests, as CI runs them
	CONVEYOR_TEST_ALL=1 $(PYTHON) -m nose

one: ## one file of tests: make one TEST=tests/core/test_step.py
	$(PYTHON) -m nose --verbosity=2 $(TEST)

hash: ## whether the core decides as before
	$(PYTHON) -m tests.simulation.command_hash

docs: ## the site, in build/site; it needs what `pip install '.[docs]'` brings
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	$(PYTHON) docs/site/check.py build/site
	@echo "open build/site/index.html"

spelling: ## codespell, with the words in docs/site/spelling.txt
	$(PYTHON) -m codespell_lib --ignore-words docs/site/spelling.txt *.md docs conveyor examples benchmarks tests

benchmarks: ## Conveyor beside the standard library, in its short form
	$(PYTHON) benchmarks/compare.py --short --check

archives: ## source archive and wheel, in dist/
	$(PYTHON) setup.py --quiet sdist bdist_wheel

census: ## the program of the README
	$(PYTHON) examples/stdlib_census.py

ci: ## everything, from nothing
	bash .ci/run

clean: ## remove what the steps above have made
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
