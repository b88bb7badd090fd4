# `make demo` and `make test` work on a fresh machine: each first makes the virtual environment that it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check lint format sanitize aarch64 bench clean

demo: $(VENV)/.package
	$(RUN) -m fastinit demo

test: $(VENV)/.dev
	$(RUN) -m pytest -n auto --dist loadscope

# Everything that CI checks.
check: lint test

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# The native core alone: for memory errors, undefined behaviour and data races, and for the same bits everywhere.
sanitize: $(VENV)/.dev
	$(RUN) tests/native/replay.py address thread

# On an emulated processor; needs g++-aarch64-linux-gnu and qemu-user.
aarch64: $(VENV)/.dev
	$(RUN) tests/native/replay.py aarch64

bench: $(VENV)/.dev
	$(RUN) benchmarks/bench_gpu.py
	$(RUN) tools/gpu_instructions.py
	$(RUN) benchmarks/bench_initialize.py
	$(RUN) benchmarks/bench_fill.py
	$(RUN) benchmarks/bench_materialize.py
	$(RUN) benchmarks/bench_build.py
	$(RUN) benchmarks/bench_load.py
	$(RUN) benchmarks/bench_shards.py
	$(RUN) benchmarks/update_tables.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard csrc/*)

# Torch by its exact version: without a constraint, pip would take the newest CUDA build.
$(VENV)/.package: pyproject.toml setup.py constraints.txt $(NATIVE) | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: pyproject.toml setup.py constraints.txt $(NATIVE) | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.package

clean:
	rm -rf $(VENV) build dist *.egg-info
