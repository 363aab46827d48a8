# make demo     sets up and shows what SimPO does to a small model (needs nothing but Python 3.11 or later)
# make test     the suite        make test-slow  the part that takes minutes
# make check    lint, format, types, import direction
# make bench    all benchmarks of a CPU, against TRL and Liger (an hour; on a machine that does nothing else)
# make bench-gpu  the benchmark of a CUDA device    make docs  the generated pages of docs/
# make site     docs/ as a site, in site/; a warning is an error
# make screenshots  the pictures of docs/images/, from runs/demo in Chromium
#
# PIP_ARGS goes to every pip install, for an index of one's own:  make setup PIP_ARGS="--extra-index-url URL"
# ARGS goes to the verb:                                           make demo ARGS="--seeds 0,1,2"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
STAMP := .venv/.installed
BENCH_ENV ?= .bench-env
PIP_ARGS ?=
ARGS ?=

.PHONY: help setup demo test test-slow check bench bench-gpu docs site screenshots clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# torch comes first and alone, by its pin: asked for through another package, pip would take the newest build, and with
# it several gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then echo "preftune needs Python 3.11 or later; name one with PYTHON=..." >&2; exit 1; fi; \
	echo "setting up .venv with $$("$$python" --version), a minute or two"; \
	"$$python" -m venv .venv
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt \
	  -e ".[dev,docs,zstd,lora,quant,deepspeed,eval,harness,serve,web,gguf]"
	@touch $(STAMP)

demo: setup
	@$(BIN)/preftune demo $(ARGS)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m slow $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

# The peers have an environment of their own.
$(BENCH_ENV)/versions.json: benchmarks/install_peers.sh
	PYTHON=$(BIN)/python BENCH_ENV=$(BENCH_ENV) PIP_ARGS="$(PIP_ARGS)" benchmarks/install_peers.sh

bench: setup $(BENCH_ENV)/versions.json
	BENCH_ENV=$(BENCH_ENV) $(BIN)/python benchmarks/run_all.py $(ARGS)

bench-gpu: setup $(BENCH_ENV)/versions.json
	BENCH_ENV=$(BENCH_ENV) $(BIN)/python benchmarks/gpu.py $(ARGS)

docs: setup
	$(BIN)/python docs/make_objectives.py
	$(BIN)/python docs/make_flags.py

site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

# The demo's run is made where it is absent.
screenshots: setup
	[ -e runs/demo/model.safetensors ] || $(BIN)/preftune demo
	$(BIN)/python docs/make_screenshots.py

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
