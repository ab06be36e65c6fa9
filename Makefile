# Needs Python 3.10 or newer, make, git, and a package index that pip can reach; nothing else.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12   not the newest Python on PATH, in a place of its own
#   make test ARGS="-k delay -x"                  arguments for pytest
#   make test JOBS=1                              one test after the other (tests mostly wait)

VENV ?= .venv
JOBS ?= 4
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo test matrix endurance lint types docs bench clean

help: ## List these commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | \
		awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

demo: $(VENV)/.demo ## Publish from Kombu and from Celery to an emulated Cloudflare, and show it
	@$(BIN)/python examples/demo.py

test: $(VENV)/.dev ## Run the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

matrix: $(VENV)/.dev ## Run Celery workers in every pool with early and late acks, and long outages
	CFQUEUES_WORKER_MATRIX=1 $(BIN)/python -m pytest tests/integration/test_worker.py \
		tests/integration/test_consume.py $(ARGS)

endurance: $(VENV)/.dev ## Kill, starve and race the processes of a machine for minutes (ARGS=kills: one run)
	PYTHONPATH=.:tests $(BIN)/python tests/endurance/spool.py $(ARGS)

lint: $(VENV)/.dev ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

docs: $(VENV)/.dev ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html is the first page"

bench: $(VENV)/.bench ## Compare ways to publish (some minutes; ARGS=--quick, ARGS=--write for the docs)
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## Delete all that these commands have made
	rm -rf $(VENV) build dist docs/_build *.egg-info worker/node_modules
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says what is installed, and is out of date when the list of dependencies is newer.
$(VENV)/.demo: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) what the demo needs (once) ..."
	@$(PIP_INSTALL) --editable '.[emulator,celery]'
	@touch $@

$(VENV)/.dev: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) the package and its development tools (once; some minutes) ..."
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.bench: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) what the benchmarks compare and draw with (once) ..."
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

$(BIN)/python:
	@sh .ci/make-venv '$(VENV)' '$(PYTHON)'
