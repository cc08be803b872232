# Two commands do everything on a fresh machine with Python 3.11+, git and make:
#   make demo    photos, preparation, three phases, report, prediction
#   make test    the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Compiled modules are kept: without them every process takes seconds to start.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench check lint format clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv from the pinned versions

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geopak needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

demo: setup ## the whole method on rendered photos, in minutes
	$(BIN)/python -m geopak.demo

# Two processes with two threads each would be many times slower than with one.
test: setup ## the tests, without those marked slow or gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

bench: setup ## measure: benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.gather

check: setup lint ## lint, types, layers, tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and builds; .venv, data/ and outputs/ stay
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache dist build
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also remove .venv and everything below data/ and outputs/
	rm -rf $(VENV)
	find data outputs -mindepth 1 ! -name .gitkeep -delete
