PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-parity test-slow lint format clean

# Trains all four families on embedded data, evaluates them and writes runs/demo/index.html.
demo: $(VENV)/.installed
	$(BIN)/aigc demo --workdir=runs/demo

# The default tests, on all cores, and one worker more: some tests wait for processes.
WORKERS = $(shell $(PYTHON) -c "import os; print((os.cpu_count() or 1) + 1)")
test: $(VENV)/.installed-test
	PYTEST_XDIST_AUTO_NUM_WORKERS=$(WORKERS) $(BIN)/python -m pytest -q -n auto --dist=loadfile --no-loadscope-reorder

# Our models against PyTorch's; PyTorch comes first where a build without CUDA is wanted.
test-parity: $(VENV)/.installed-parity
	$(BIN)/python -m pytest -q tests/parity

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

$(VENV)/.installed-parity: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[parity]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
