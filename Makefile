# The commands of daily work. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.PHONY: help setup check runtimes test test-computing test-waiting arm64 wheel deb demo bench clean
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= digits
# The first of these that is there; `make PYTHON=...` chooses another.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install the project with all its extras; does nothing when that is up to date
	@:

check: $(STAMP) ## formatting, lint, types, and which package may import which
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted; run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > $(VENV)/.imports 2>&1 || { cat $(VENV)/.imports; exit 1; }
	@echo "check: formatting, lint, types and imports are in order"

runtimes: $(STAMP) ## environments with other releases of onnxruntime, for the tests that compare them
	@$(BIN)/python -m tests.runtimes.matrix

# These only compute, and share no clock, port or process: they run on all cores, on four at most for memory's sake, and
# give way to the others, which start fleets and wait for them, one after another. `make -j2 test` runs both at once.
COMPUTING := tests/channels tests/export tests/runtimes tests/sparse

test: test-computing test-waiting ## all tests

test-computing: $(STAMP)
	@nice $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal $(COMPUTING)

test-waiting: $(STAMP)
	@$(BIN)/python -m pytest -q $(addprefix --ignore=,$(COMPUTING))

arm64: $(STAMP) ## the agent's tests and a round on an emulated arm64 board; as root, minutes
	@$(BIN)/python -m tests.arm64

wheel: $(STAMP) ## dist/sparsefleet-*.whl
	@$(BIN)/python packaging/build_wheel.py

deb: $(STAMP) ## dist/edge-agent_*.deb and dist/fleet-coordinator_*.deb, for amd64 and arm64; packaging/test-deb.sh tests them
	@$(BIN)/python packaging/build_deb.py

demo: $(STAMP) ## a whole fleet on this machine, live; DATA=digits (built in), hapt, fashion or fsdd
	@$(BIN)/python -m devices demo --data $(DATA) $(ARGS)

bench: $(STAMP) ## the federation benchmark, in its quick form
	@$(BIN)/python -m benchmarks.federation --quick

clean: ## remove the environment, caches and what the demo made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	@if [ -e demo/.sparsefleet-demo ]; then rm -rf demo; fi
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Rebuilt only when what is to be installed has changed; a failed install leaves no stamp.
$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null; then \
		echo "setup: needs Python 3.11, 3.12 or 3.13 (found: $$("$(PYTHON)" --version 2> /dev/null || echo "none at '$(PYTHON)'"))."; \
		echo "       Debian 12: apt-get install python3 python3-venv; or name one: make setup PYTHON=/path/to/python3.11"; \
		exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null; then \
		echo "setup: $(PYTHON) cannot make virtual environments. Debian 12: apt-get install python3-venv"; exit 1; fi
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	@echo "setup: installing into $(VENV); the first time this takes minutes"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -e '.[dev]' 2>&1 \
		| tee $(VENV)/install.log | awk -v tty="$$([ -t 1 ] && echo 1)" "$$SHOW_INSTALL" \
		|| { tail -n 15 $(VENV)/install.log; echo "setup: failed; all of it is in $(VENV)/install.log"; exit 1; }
	@touch $(STAMP)
	@echo "setup: ready"

# One line that changes, on a terminal; elsewhere only the large downloads.
define SHOW_INSTALL
/^ *Collecting / && tty { printf "\r\033[K  looking for %s", $$2; fflush() }
/^ *Downloading / { if (tty) printf "\r\033[K"; if (tty || /[0-9][0-9][0-9]\.?[0-9]* MB/) print "  " $$1, $$2, $$3, $$4; fflush() }
/^Installing / { if (tty) printf "\r\033[K"; print "  unpacking " NF - 3 " packages"; fflush() }
endef
export SHOW_INSTALL
