# `make demo` runs a campaign, `make test` the tests; both make their environment (.venv) on the way.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# Each worker begins with a part of its own, so the fixtures of a module are made once; who has done its part helps.
PARALLEL = -n $(WORKERS) --dist worksteal
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed

# Tests start hundreds of processes: where this is set they would compile what they import, each one again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo check test test-long test-lowest test-libensemble test-parsl bench bench-peers docs format install-hooks clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## Run a real campaign on this machine, from nothing, and clean up
	@$(BIN)/python integrations/demo/campaign.py

check: $(DEV) ## Lint, format, strict types, import rules, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test: $(DEV) ## Run every test, on SQLite and on a PostgreSQL of its own
	$(BIN)/pytest $(PARALLEL) $(ARGS)

test-long: $(DEV) ## Run the tests of random campaigns with thirty times as many of them
	BALSAM_TEST_EFFORT=30 $(BIN)/pytest $(PARALLEL) -k "test_any" tests/server tests/site $(ARGS)

test-lowest: .venv-lowest/.dev-installed ## Run the tests with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/pytest $(PARALLEL) -p no:cacheprovider $(ARGS)

test-libensemble: $(DEV) ## Run libEnsemble's own tests of its MPIExecutor on our executor
	BALSAM_TEST_FETCH=1 $(BIN)/pytest $(PARALLEL) tests/executors/libensemble/test_strangers.py $(ARGS)

test-parsl: .venv-parsl/.installed ## Run Parsl's own test suite on our executor
	.venv-parsl/bin/python integrations/parsl/suite.py $(ARGS)

bench: $(DEV) bench-peers ## Measure, beside Parsl, HyperQueue and a bare loop, for docs/benchmarks.md
	$(BIN)/python -m benchmarks

bench-peers: .venv-peers/.installed

docs: $(DEV) ## Serve the documentation on http://127.0.0.1:8000
	$(BIN)/mkdocs serve

format: $(DEV) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install-hooks: $(DEV) ## Check every commit before it is made
	$(BIN)/pre-commit install

clean: ## Remove everything that was made here
	rm -rf .venv .venv-lowest .venv-parsl .venv-peers build dist demo-run site-build .mypy_cache .ruff_cache .pytest_cache .hypothesis

define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	|| { echo "Python's venv module is not installed: apt-get install -y python3-venv" >&2; exit 1; }
@$(PYTHON) -m venv $(1)
endef

# uv: twice as fast as pip, and it can resolve the lowest versions.
uv_install = $(1)/bin/uv pip install --quiet --system-certs --python $(1)/bin/python

$(BIN)/python:
	@echo "Making $(VENV) ..."
	$(call make_venv,$(VENV))

$(RUNTIME): pyproject.toml | $(BIN)/python
	@echo "Installing balsam-exec into $(VENV) ..."
	@$(PIP) install --editable ".[demo]"
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "Installing balsam-exec and its development tools into $(VENV) ..."
	@$(PIP) install uv
	@$(call uv_install,$(VENV)) --editable . --group dev
	@touch $@ $(RUNTIME)

.venv-lowest/.dev-installed: pyproject.toml
	$(call make_venv,.venv-lowest)
	@.venv-lowest/bin/python -m pip --quiet install uv
	@$(call uv_install,.venv-lowest) --resolution lowest-direct --editable . --group test
	@touch $@

.venv-parsl/.installed: integrations/parsl/requirements-suite.txt pyproject.toml
	$(call make_venv,.venv-parsl)
	@.venv-parsl/bin/python -m pip --quiet --disable-pip-version-check install --requirement $< --editable .
	@touch $@

.venv-peers/.installed: benchmarks/requirements-peers.txt
	$(call make_venv,.venv-peers)
	@.venv-peers/bin/python -m pip --quiet install --requirement $<
	@touch $@
