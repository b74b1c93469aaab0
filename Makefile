# make demo: install, fetch a small model, prepare → estimate → train → eval → generate.
# make test: install what the tests need, and run the quick ones: one of each proof, in minutes.
# make test-all: the long ones too, which vary what the quick ones prove.
# They hide a GPU; what only a GPU can show: .venv/bin/python -m pytest -m gpu.
# make faults: what is injected, what is seen, what is required (docs/faults.md: FAULTS=--write).
# make results DATA=...: base, prompted base and tuned models on real rows (docs/results/).
# make bench: speed, measured; docs/performance.md is written from it (BENCH=--only levers, ...).
# CPU-only or CUDA builds of torch: PIP_ARGS, see README.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
FAULTS ?=
BENCH ?=
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
# A file's tests stay in one process, since they share what was trained for them; files are begun in
# the order of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all faults check lint docs results bench clean

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
	FTCLI_SMALL_MODEL=$(abspath $(MODEL)) $(BIN)/python scripts/faults.py $(FAULTS)

check: lint
	$(PYTEST) -m "not slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python scripts/build_docs.py
	$(BIN)/python scripts/build_vram_docs.py
	$(BIN)/python scripts/build_methods_docs.py
	$(BIN)/python scripts/build_compare_docs.py
	$(BIN)/python scripts/forgetting.py --write

results: $(VENV)/.dev
	@test -n "$(DATA)" || { echo "which data? make results DATA=folder" >&2; exit 2; }
	$(BIN)/python scripts/small_model.py $(MODEL)
	$(BIN)/python scripts/results.py --model $(MODEL) --data $(DATA)

bench: $(VENV)/.dev
	$(BIN)/python scripts/small_model.py $(MODEL)
	$(BIN)/python scripts/performance.py --model $(MODEL) $(BENCH)

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
