# `make demo` and `make test` set themselves up: a venv in .venv with pinned packages, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=
# One more than cores, up to four: tests wait for clusters and servers, and each takes up to 3 GB.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 3 ? cores + 1 : 4)))
BENCH_ARGS ?=
CHAOS_ARGS ?=
BENCH_READY := .bench-packages/.ready
LABEL_STUDIO := .label-studio/venv
LABEL_STUDIO_READY := .label-studio/.ready

# Worker processes wait without spinning, and every process keeps to the cores it was given.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-on-slurm test chaos check format lock bench bench-data bench-search bench-search-full bench-search-scale bench-tuning label-studio clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## create .venv and install the pinned packages (done by every other target)

$(READY): requirements/lock.txt requirements/encoders.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) found: install Python 3.11 or newer, or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old: Python 3.11 or newer is needed, run make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: apt-get install python3-venv"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "error: no C++ compiler found, DeepSpeed builds its operators with one: apt-get install g++"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/lock.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/encoders.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## the whole round on generated clips: runs/demo/summary.json and report.png
	@$(BIN)/python -m launch.round experiment=demo

test: $(READY)  ## the whole test suite
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

chaos: $(READY)  ## rounds on a real SLURM to which 20 things happen (docs/slurm.md); needs root
	@$(BIN)/python tests/cluster/chaos.py $(CHAOS_ARGS)

demo-on-slurm: $(READY)  ## that round on a real SLURM, compared with this machine's; needs root
	@$(BIN)/python tests/cluster/demo_round.py

check: $(READY)  ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)  ## mend lint and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(READY)  ## write requirements/lock.txt from the versions installed now
	@$(BIN)/python -m pip freeze --exclude-editable \
	  | grep -viE "$$(sed -nE 's/^([a-z0-9-]+)==.*/^\1==/p' requirements/encoders.txt | paste -sd'|')" \
	  > requirements/lock.txt

bench: bench-data bench-search bench-tuning  ## all benchmarks

bench-data: $(READY) $(BENCH_READY)  ## ratio tables of the data plane (docs/performance.md); BENCH_ARGS="decode --quick"
	@$(BIN)/python -m benchmarks.data $(BENCH_ARGS)

bench-search: $(READY)  ## exact search against faiss.knn and inverted files: runs/bench/search.json
	@$(BIN)/python -m benchmarks.search $(BENCH_ARGS)

bench-search-full: $(READY)  ## all peers, other data and sizes, in pieces: BENCH_ARGS="--budget-minutes 60"
	@$(BIN)/python -m benchmarks.search.venvs
	@$(BIN)/python -m benchmarks.search.full $(BENCH_ARGS)

bench-search-scale: $(READY)  ## 20M vectors: predicted against measured time and memory
	@$(BIN)/python -m benchmarks.search_scale $(BENCH_ARGS)

bench-tuning: $(READY)  ## last-2-blocks tuning from the cache against live (docs/performance.md)
	@$(BIN)/python -m benchmarks.tuning $(BENCH_ARGS)

$(BENCH_READY): requirements/bench.txt | $(READY)
	@mkdir -p $(@D)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) -r $< \
	  && touch $@ || echo "requirements/bench.txt could not be installed: the tables will say which peer is missing"

label-studio: $(LABEL_STUDIO_READY)  ## a Label Studio server in a virtual environment of its own, for tests and small teams (1 GB)

$(LABEL_STUDIO_READY): requirements/label-studio.txt
	@echo "installing Label Studio into $(LABEL_STUDIO) (two minutes, once)"
	@$(PYTHON) -m venv --clear $(LABEL_STUDIO)
	@$(LABEL_STUDIO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@cp $< $@

clean: $(READY)  ## delete stages that no kept run needs
	@$(BIN)/python -m launch.clean
