# `make demo` and `make test` work on a fresh machine: each first makes the virtual environment that it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test coverage versions check lint format fuzz fuzz-briefly sanitize gpu-host-path gpu-day sdist-check wheel docs aarch64 bench clean

demo: $(VENV)/.package
	$(RUN) -m fastinit demo

test: $(VENV)/.dev
	$(RUN) -m pytest -n auto --dist loadscope --no-loadscope-reorder

# Which lines of the package the tests run, without those that run in other processes; some of the tests, added to what was
# measured before: make coverage TESTS='tests/config --cov-append'
TESTS ?=
coverage: $(VENV)/.dev
	$(RUN) -m pytest -q -n auto --dist loadscope --no-loadscope-reorder --cov --cov-report=term:skip-covered $(TESTS)

# The tests on other releases of Python and torch; takes an hour or more, and environments of 1 GB each in build/versions.
versions: $(VENV)/.dev
	$(RUN) tools/check_versions.py
	$(RUN) tools/update_tables.py

# Everything that CI checks.
check: lint test

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(RUN) tests/support/typed_rules.py tests/support/typed_user.py

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Damaged checkpoints of all formats (SECURITY.md); what breaks a promise is kept in build/fuzz. Another seed finds others:
# make fuzz SEED=7 FUZZ_SECONDS=600
SEED ?= $(shell date +%s)
FUZZ_SECONDS ?= 3600
fuzz: $(VENV)/.dev
	$(RUN) tools/fuzz_checkpoints.py --seed $(SEED) --seconds $(FUZZ_SECONDS) --keep build/fuzz

# What CI has time for; always the same mutants, as far as it comes.
fuzz-briefly: $(VENV)/.dev
	$(RUN) tools/fuzz_checkpoints.py --seed 0 --seconds 40 --keep build/fuzz

# The native core alone: for memory errors, undefined behaviour and data races, and for the same bits everywhere.
sanitize: $(VENV)/.dev
	$(RUN) tests/native/replay.py address thread

# Fills of cpp by the host side of the GPU backends: within recording, building, dry runs and modes of torch. What the slowest file
# does without cpp is the same as in `make test`.
gpu-host-path: $(VENV)/.dev
	PYTHONPATH=tests/support $(RUN) -m pytest -q -n auto --dist worksteal -p cpp_as_gpu -k 'not (test_growth and torch)' \
		tests/recording tests/execution tests/config/test_param_rules.py

# What a release would hold: builds the sdist and from it a wheel, and uses that in an empty environment without compilers.
sdist-check: $(VENV)/.dev
	$(RUN) tests/house/try_sdist.py

# A wheel of this machine's Python in dist/, with the CUDA kernel where nvcc is (a minute), named for the systems it runs on.
wheel: $(VENV)/.dev
	rm -rf build/wheel
	env -u FASTINIT_CUDA_ARCHS $(RUN) -m pip wheel --no-deps --wheel-dir build/wheel .
	PATH=$(VENV)/bin:$$PATH $(RUN) -m auditwheel repair --wheel-dir dist build/wheel/*.whl

# The site, in build/site; a link or a name that is not there fails the build. The package that is installed brings the list of
# what this needs, and is not built again for it.
docs: $(VENV)/.dev
	$(RUN) -m pip install --quiet --constraint constraints.txt 'torch-fastinit[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

# On an emulated processor; needs g++-aarch64-linux-gnu and qemu-user.
aarch64: $(VENV)/.dev
	$(RUN) tests/native/replay.py aarch64

# All steps of the day on a GPU (docs/gpu.md); without one over the CPU's backend in small sizes, so that none of it rots.
gpu-day: $(VENV)/.dev
	$(RUN) tools/gpu_day.py

bench: $(VENV)/.dev
	$(RUN) benchmarks/bench_gpu.py
	$(RUN) tools/gpu_instructions.py
	$(RUN) tools/gpu_predictions.py
	$(RUN) benchmarks/bench_initialize.py
	$(RUN) benchmarks/bench_host.py
	$(RUN) benchmarks/bench_engine.py
	$(RUN) benchmarks/bench_fill.py
	$(RUN) benchmarks/bench_peers.py
	$(RUN) benchmarks/bench_digest.py
	$(RUN) benchmarks/bench_fresh.py
	$(RUN) benchmarks/bench_verify.py
	$(RUN) benchmarks/bench_materialize.py
	$(RUN) benchmarks/bench_build.py
	$(RUN) benchmarks/profile_build.py
	$(RUN) benchmarks/bench_growth.py
	$(RUN) benchmarks/bench_load.py
	$(RUN) benchmarks/bench_write.py
	$(RUN) benchmarks/bench_shards.py
	$(RUN) benchmarks/bench_orthogonal.py
	$(RUN) tools/update_tables.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard csrc/*)
# Compiling the CUDA kernel for four GPUs takes longer than all the rest (setup.py has these switches). Without a GPU the
# demo does not have it, as it could not run, and developers have it for one, so that all of its code is compiled and
# linked; the tests of the kernel compile their own.
HAS_GPU := $(wildcard /dev/nvidia[0-9]* /dev/dxg)
$(VENV)/.package: export FASTINIT_CUDA ?= $(if $(HAS_GPU),,0)
$(VENV)/.dev: export FASTINIT_CUDA_ARCHS ?= $(if $(HAS_GPU),,90)

# Torch by its exact version: without a constraint, pip would take the newest CUDA build.
$(VENV)/.package: pyproject.toml setup.py constraints.txt $(NATIVE) | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: pyproject.toml setup.py constraints.txt $(NATIVE) | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.package

clean:
	rm -rf $(VENV) build dist *.egg-info
