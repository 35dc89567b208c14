# make run         answer a prompt with the embedded model, from a fresh clone
# make test        unit, backend, golden and system tests: no torch, no network but the package registry
# make test-oracle parity with transformers (and llama.cpp where llama-cpp-python is installed), and the long forms of
#                  tests that make test runs in short
# make test-native the C++ kernels by themselves: plain, with AddressSanitizer and UBSan, with ThreadSanitizer
# make test-neon   the arm64 kernels, compiled for arm64 and run under qemu
# make test-avx2   the AVX2 kernels on an emulated CPU that has no AVX-512
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

.PHONY: run test test-oracle test-native test-neon test-avx2 lint bench docs clean

run: .venv/.installed-dev
	$(BIN)/gemworks run tiny "$(PROMPT)" </dev/null

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not exhaustive" --durations=15 --durations-min=1 $(QUICK_TESTS)

test-oracle: .venv/.installed-oracle
	$(BIN)/python -m pytest --durations=15 --durations-min=1 $(ORACLE_TESTS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m exhaustive --durations=15 $(QUICK_TESTS)

# The tests of csrc/tests, a program of their own; $(call kernel_tests,FOLDER,CMAKE OPTIONS) builds it.
NATIVE := build/native
comma := ,
kernel_tests = cmake -S csrc/tests -B $(NATIVE)/$(1) $(2) >$(NATIVE)-$(1).log && cmake --build $(NATIVE)/$(1) --parallel $(WORKERS) >>$(NATIVE)-$(1).log || { cat $(NATIVE)-$(1).log; exit 1; }
# $(call needs,PROGRAMS,PACKAGES): says what to install where a program is missing.
needs = @for p in $(1); do command -v $$p >/dev/null || { echo "make $@ needs $$p (apt-get install $(2))"; exit 1; }; done; mkdir -p build
# Emulated, the pool takes minutes. The others end with a hash of all results: one for all instruction sets.
EMULATED := simd linear blocks attention
hash = sed -n 's/.*results //p'

test-native:
	$(call needs,cmake c++,cmake g++)
	$(call kernel_tests,plain)
	$(NATIVE)/plain/kernel_tests
	$(call kernel_tests,address,-DGEMWORKS_SANITIZE=address$(comma)undefined)
	$(NATIVE)/address/kernel_tests
	$(call kernel_tests,thread,-DGEMWORKS_SANITIZE=thread)
	$(NATIVE)/thread/kernel_tests linear blocks attention pool

ARM64 := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static

test-neon:
	$(call needs,cmake c++ aarch64-linux-gnu-g++ qemu-aarch64-static,cmake g++ g++-aarch64-linux-gnu qemu-user-static)
	$(call kernel_tests,neon,$(ARM64))
	qemu-aarch64-static $(NATIVE)/neon/kernel_tests $(EMULATED) --require neon >$(NATIVE)-neon.log && cat $(NATIVE)-neon.log
	$(call kernel_tests,neon-i8mm,$(ARM64) -DGEMWORKS_EXTRA_ISA=-march=armv8.2-a+dotprod+i8mm)
	qemu-aarch64-static $(NATIVE)/neon-i8mm/kernel_tests simd linear --require neon
	$(call kernel_tests,plain)
	$(NATIVE)/plain/kernel_tests $(EMULATED) >$(NATIVE)-plain.log && cat $(NATIVE)-plain.log
	@test "$$($(hash) $(NATIVE)-neon.log)" = "$$($(hash) $(NATIVE)-plain.log)" || { echo "arm64 gives other results than this machine"; exit 1; }

test-avx2:
	$(call needs,cmake c++ qemu-x86_64-static,cmake g++ qemu-user-static)
	$(call kernel_tests,plain)
	qemu-x86_64-static -cpu max $(NATIVE)/plain/kernel_tests $(EMULATED) --require avx2

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
