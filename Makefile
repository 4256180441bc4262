# make demo   train on the digits for two minutes, sample, evaluate
# make test   the tests
# make benchmark   goalgen beside its peers, in two or three hours, in pieces; rewrites docs/benchmarks.md
# All install everything into .venv first, against the versions in constraints.txt. (torchcfm comes without its dependencies: they
# hold torchvision, which is not there for every machine, and it needs none but POT.)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all benchmark check format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps torchcfm
	touch $@

demo: install
	$(BIN)/goalgen demo --out runs/demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-all: install
	$(BIN)/python -m pytest -q -m "slow or not slow"

benchmark: install
	$(BIN)/python benchmarks/bench.py suite

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
