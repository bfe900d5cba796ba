# One command per chore, the same here and in CI. Every target makes its own virtual environment first.
PYTHON ?= python3
VENV := .venv
KV_VENV := build/kv-venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
PIP := $(RUN) pip --disable-pip-version-check --quiet
export PYTHONUTF8 := 1

.PHONY: help up down test test-slow test-clients test-openwebui test-kv test-kv-slow test-gpu test-explore test-all lint format bench mini guard docs clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sekisho needs Python 3.11 or newer: make PYTHON=python3.12 up")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml
	@echo 'Installing Sekisho into $(VENV) ...'
	@$(PIP) install --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed pyproject.toml
	@echo 'Installing what the tests need into $(VENV) ...'
	@$(PIP) install --editable . --group dev
	@touch $@

# An environment of its own, so that everything else is checked as most of us have it: without PyTorch.
$(KV_VENV)/installed: pyproject.toml
	@echo 'Installing PyTorch and transformers into $(KV_VENV) ...'
	@test -x $(KV_VENV)/bin/python || $(PYTHON) -m venv $(KV_VENV)
	@$(KV_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --upgrade 'pip>=25.1'
	@$(KV_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable . --group dev --group kv
	@touch $@

up: $(VENV)/installed ## Install and start the server with the built-in model; prints address, key and a curl line
	@$(BIN)/sekisho up --detach

down: $(VENV)/installed ## Stop the server
	@$(BIN)/sekisho down

test: $(VENV)/installed-dev ## The test suite, on two processors
	@$(RUN) pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed-dev ## Tests that take more than some seconds
	@$(RUN) pytest -m 'slow and not kv'

test-clients: $(VENV)/installed-dev ## Tests that drive third-party client programs (needs npm for the Codex CLI)
	@$(RUN) pytest -m 'client and not kv'

test-openwebui: $(VENV)/installed-dev ## Install Open WebUI (3 GB) and prove the printed settings with it, in a browser too
	@$(RUN) pytest -m openwebui

test-kv: $(KV_VENV)/installed ## Tests of the tiered KV cache and the torch engine (installs PyTorch)
	@OMP_NUM_THREADS=1 $(KV_VENV)/bin/python -m pytest -m 'kv and not gpu and not slow' -n 2 --dist loadfile

test-kv-slow: $(KV_VENV)/installed ## Those of them that take long: a simulated day, the torch engine behind the gateway
	@$(KV_VENV)/bin/python -m pytest -m 'kv and slow and not gpu'

test-explore: $(VENV)/installed-dev ## The property tests with new random examples; a fault found gets a test of its own
	@SEKISHO_TESTS_EXPLORE=1 $(RUN) pytest -m 'hypothesis and not kv and not gpu' -n 2 --dist loadfile

test-gpu: $(KV_VENV)/installed ## Tests that need a GPU
	@$(KV_VENV)/bin/python -m pytest -m gpu

test-all: $(VENV)/installed-dev ## Everything that can run here without PyTorch
	@$(RUN) pytest -m 'not gpu and not openwebui and not kv'

lint: $(VENV)/installed-dev ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/installed-dev ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/installed-dev ## Measure the gateway beside nginx and LiteLLM
	@$(BIN)/python bench/gateway.py

mini: ## Train the built-in model anew (about an hour on two cores; needs PyTorch, in its own environment)
	@test -x build/mini-venv/bin/python || $(PYTHON) -m venv build/mini-venv
	@build/mini-venv/bin/python -m pip --disable-pip-version-check --quiet install -r tools/mini/requirements.txt
	@build/mini-venv/bin/python tools/mini/build.py

guard: ## Train the guard's linear model anew (minutes on two cores; needs scipy, in its own environment)
	@test -x build/guard-venv/bin/python || $(PYTHON) -m venv build/guard-venv
	@build/guard-venv/bin/python -m pip --disable-pip-version-check --quiet install -r tools/guard/requirements.txt
	@build/guard-venv/bin/python tools/guard/build.py

docs: $(VENV)/installed-dev ## Check that the documentation names everything that exists
	@$(RUN) pytest tests/test_docs.py tests/test_docs_protocols.py

clean: ## Remove the environment and build products (not your data)
	@rm -rf $(VENV) build dist
