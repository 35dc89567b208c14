# make run         answer a prompt with the embedded model, from a fresh clone
# make test        unit, backend, golden and system tests: no torch, no network but the package registry
# make test-oracle parity with transformers (and llama.cpp where llama-cpp-python is installed)
# make lint        ruff and pyright
# make bench       measurements of this machine
# make docs        the generated tables in README.md
# make clean       everything that can be made again

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
# Two test processes: each compiles for the CPU on its own, and one core is idle otherwise. 0 is one process.
WORKERS ?= 2
PROMPT ?= What is the capital of France?

BIN := .venv/bin
BUILD_FILES := pyproject.toml CMakeLists.txt tools/build_backend.py $(wildcard csrc/*)
QUICK_TESTS := $(wildcard tests/unit tests/backend tests/golden tests/system)
ORACLE_TESTS := $(wildcard tests/oracle)

.PHONY: run test test-oracle lint bench docs clean

run: .venv/.installed-dev
	$(BIN)/gemworks run tiny "$(PROMPT)" </dev/null

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --durations=15 --durations-min=1 $(QUICK_TESTS)

test-oracle: .venv/.installed-oracle
	$(BIN)/python -m pytest --durations=15 --durations-min=1 $(ORACLE_TESTS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/.installed-dev
	@set -e; for question in $(wildcard bench/*/run.py); do $(BIN)/python $$question; done; \
	  test -n "$(wildcard bench/*/run.py)" || echo "bench/ has no questions yet"

docs: .venv/.installed-dev
	$(BIN)/python tools/readme_table.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Gemworks needs Python 3.11, 3.12 or 3.13; none is on PATH. Try make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed-dev: $(BUILD_FILES) | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

.venv/.installed-oracle: .venv/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,oracle]"
	touch $@
