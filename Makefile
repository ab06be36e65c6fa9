# Needs Python 3.10 or newer, make, git, and a package index that pip can reach; nothing else.
#
#   make test PYTHON=python3.12 VENV=.venv-3.12   not the newest Python on PATH, in a place of its own
#   make test ARGS="-k delay -x"                  arguments for pytest
#   make test JOBS=1                              one test after the other (tests mostly wait)

VENV ?= .venv
JOBS ?= 5
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Groups of dependencies need pip 25.1, and a new environment may have an older one.
DEPENDENCIES := $(PIP_INSTALL) --upgrade 'pip>=25.1' && $(PIP_INSTALL) --editable '.[celery,cli,emulator,exporter,otel,redis]' --group

# Celery prefers these to what an application says, and whoever has followed the README has set one.
unexport CELERY_BROKER_URL CELERY_BROKER_READ_URL CELERY_BROKER_WRITE_URL CFQUEUES_BROKER_URL
# The tests start thousands of processes, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test long matrix positions endurance chaos soak coverage mutation fuzz versions lint types docs bench fleet release audit clean

help: ## List these commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1|/' | \
		awk -F'|' '{ printf "%-18s%s\n", $$1, $$2 }'

demo: $(VENV)/.demo ## Publish from Kombu and from Celery to an emulated Cloudflare, and show it
	@$(BIN)/python examples/demo.py

test: $(VENV)/.dev ## Run the test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

long: $(VENV)/.dev ## Run what `make test` leaves out: more parameters, rare events, 100,000 messages
	CFQUEUES_LONG=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		-m 'long or longer' $(ARGS)

matrix: $(VENV)/.dev ## Run Celery workers in every pool with early and late acks, and long outages
	CFQUEUES_WORKER_MATRIX=1 $(BIN)/python -m pytest tests/integration/test_worker.py \
		tests/integration/test_consume.py tests/integration/test_event_loop.py \
		tests/integration/test_worker_ends.py tests/integration/test_health.py tests/integration/test_deaths.py \
		tests/integration/test_control_workers.py tests/integration/test_control_outages.py \
		tests/worker/test_hub_control.py $(ARGS)

coverage: $(VENV)/.dev ## Run the test suite, and say which branches of the library it misses
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

mutation: $(VENV)/.mutation ## Break the library in small ways, and see tests fail (hours; ARGS="--most 20 group_commit")
	$(BIN)/python -m tests.mutation $(ARGS)

fuzz: $(VENV)/.fuzz ## Search for messages and answers that break their reading (ten minutes)
	$(BIN)/python -m tests.fuzz $(ARGS)

versions: ## Test with each Kombu, Celery and Python (over an hour; ARGS=--ends for a short form)
	.ci/versions $(ARGS)

endurance: $(VENV)/.dev ## Kill, starve and race the processes of a machine for minutes (ARGS=kills: one run)
	PYTHONPATH=.:tests $(BIN)/python tests/endurance/spool.py $(ARGS)

positions: $(VENV)/.dev ## Run the client's tests in each position of each knob of the emulator (half an hour)
	$(BIN)/python tests/conformance/every_position.py $(ARGS)

chaos: $(VENV)/.dev ## Kill and cut off everybody, over 110,000 messages (15 minutes; ARGS="--seed 8")
	PYTHONPATH=.:tests $(BIN)/python -m chaos $(ARGS)

soak: $(VENV)/.dev $(VENV)/.bench ## Half an hour of faults (ARGS="--minutes 2", ARGS=--write for the docs)
	PYTHONPATH=.:tests $(BIN)/python -m chaos.soak $(ARGS)

lint: $(VENV)/.dev ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

docs: $(VENV)/.dev ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html is the first page"

bench: $(VENV)/.bench ## Compare ways to publish and to consume (some minutes; ARGS=--quick or --write)
	@failed=; for each in "benchmarks $(ARGS)" "benchmarks.consuming $(ARGS)" "benchmarks.workers $(ARGS)" \
			benchmarks.idle benchmarks.control; do \
		$(BIN)/python -m $$each || failed="$$failed, $${each%% *}"; \
	done; test -z "$$failed" || { echo "not as they must be: $${failed#, }"; exit 1; }

fleet: $(VENV)/.dev ## Simulate a day of machines that share a token; run ten for 12 minutes (ARGS="--redis")
	$(BIN)/python -m benchmarks.fleet
	$(BIN)/python -m benchmarks.fleet_run $(ARGS)

release: $(VENV)/.dev ## Check all, tag and build a release: make release VERSION=1.2.3
	$(BIN)/python .ci/release.py '$(VERSION)'
	rm -rf dist && $(BIN)/python -m build

audit: ## Ask npm's registry for known vulnerabilities in the tools of the Workers' tests
	npm --prefix worker audit

$(VENV)/.mutation: $(VENV)/.dev
	@$(PIP_INSTALL) 'mutmut>=3.8,<4'
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev
	@$(PIP_INSTALL) 'atheris>=2.3,<4'
	@touch $@

clean: ## Delete all that these commands have made
	rm -rf $(VENV) .venv-versions .coverage* build dist docs/_build *.egg-info worker/node_modules
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says what is installed, and is out of date when the list of dependencies is newer.
$(VENV)/.demo: setup.cfg setup.py pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) what the demo needs (once) ..."
	@$(PIP_INSTALL) --editable '.[emulator,celery]'
	@touch $@

$(VENV)/.dev: setup.cfg setup.py pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) the package and its development tools (once; some minutes) ..."
	@$(DEPENDENCIES) dev
	@touch $(VENV)/.demo $@

$(VENV)/.bench: setup.cfg setup.py pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) what the benchmarks compare and draw with (once) ..."
	@$(DEPENDENCIES) bench
	@touch $@

$(BIN)/python:
	@sh .ci/make-venv '$(VENV)' '$(PYTHON)'
