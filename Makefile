# make demo: install, fetch a small model, prepare → estimate → train → eval → generate.
# make quick: lint, types, layers and the tests that need no torch: less than a minute.
# make check: the same with all quick tests; make test: with the small model too, one of each proof.
# make test-all: the long tests too, which vary what the quick ones prove.
# They hide a GPU; what only a GPU can show, and its speed and memory: make card.
# make faults: what is injected, what is seen, what is required (docs/faults.md: FAULTS=--write).
# make models: each model type of transformers proven on a tiny model; writes docs/models.md (hours).
# make bench: speed, measured; docs/performance.md is written from it (BENCH="--only optimizations", ...).
# CPU-only or CUDA builds of torch: PIP_ARGS, see README. --no-compile: Python compiles what is
# imported, and of torch that is little; installing takes half as long.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
FAULTS ?=
BENCH ?=
MODELS ?=
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
# Folders whose quick tests load no torch.
QUICK := tests/config tests/runs tests/pages tests/test_errors.py tests/test_console.py tests/test_redact.py
# A file's tests stay in one process, since they share what was trained for them; files are begun in
# the order of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo quick check lint test test-all faults card docs models bench clean

demo: $(VENV)/.demo
	BIN=$(BIN) MODEL=$(MODEL) sh scripts/demo.sh

test: lint
	$(BIN)/python scripts/small_model.py $(MODEL)
	FTCLI_SMALL_MODEL=$(abspath $(MODEL)) $(PYTEST) -rfE -m "not slow and not gpu"

test-all: lint
	$(BIN)/python scripts/small_model.py $(MODEL)
	FTCLI_SMALL_MODEL=$(abspath $(MODEL)) $(PYTEST) -rfEs -p tests.faults.report --faults-table

faults: $(VENV)/.dev
	$(BIN)/python scripts/small_model.py $(MODEL)
	FTCLI_SMALL_MODEL=$(abspath $(MODEL)) $(BIN)/python -m scripts.faults $(FAULTS)

quick: lint
	$(BIN)/python -m pytest -n 0 -m "not slow and not gpu" $(QUICK)

check: lint
	$(PYTEST) -m "not slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

card: $(VENV)/.dev
	$(BIN)/python scripts/small_model.py $(MODEL)
	FTCLI_SMALL_MODEL=$(abspath $(MODEL)) $(BIN)/python -m pytest -m gpu -rs
	$(BIN)/python -m scripts.bench_card
	$(BIN)/python -m scripts.measure_vram
	$(BIN)/python -m scripts.bench_optimizations --model $(MODEL)

docs: $(VENV)/.dev
	$(BIN)/python -m scripts.build_shop_data
	$(BIN)/python -m scripts.build_docs
	$(BIN)/python -m scripts.vram_error --write
	$(BIN)/python -m scripts.bench --write

models: $(VENV)/.dev
	$(BIN)/python -W ignore -m scripts.models $(MODELS)

bench: $(VENV)/.dev
	$(BIN)/python scripts/small_model.py $(MODEL)
	$(BIN)/python -m scripts.bench --model $(MODEL) $(BENCH)

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile $(PIP_ARGS) -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile $(PIP_ARGS) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
