# `make run` and `make test` do everything on a fresh machine; the others are for people who work on the code.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check lint types install clean

# Install, then every stage on the embedded default, under Prefect; ends with what was erased and what it cost.
run: install
	$(BIN)/expunge retrain
	@$(BIN)/expunge verdict || [ $$? -eq 1 ]

# Install, then the default test suite.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "pip>=25.1" # the first to read dependency groups
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[openmoji]" --group dev
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt open_clip_torch # tests read CLIP's vocabulary in it
	touch $@

# All services on this machine (docs/operations.md): start what does not run, say what runs, end all.
.PHONY: up status down
up status down: .venv/deploy
	@$(BIN)/python -m deploy.processes $@

.venv/deploy: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[deploy,openmoji]"
	touch $@

# What CI runs besides the tests.
check: lint types

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install
	$(BIN)/basedpyright

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache

# Writes the code that each stage depends on into dvc.yaml, and the documents' tables from the reports.
.PHONY: deps tables
deps: install
	$(BIN)/python -m flows.deps
tables: install
	$(BIN)/cog -r README.md docs/results.md
