# One command for each job. All of them work on a fresh machine that has Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV ?= .venv
# Processes of the test run, and words for pytest, e.g. `make test ARGS='-k webhooks'`.
WORKERS ?= 3
ARGS ?=
# Which build of torch: auto (what pip finds, verified where a lock has it), cpu, cuda, any (requirements/install.py).
TORCH ?= auto

BIN := $(VENV)/bin
# Several processes share the cores, and torch's idle threads must not spin on them.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo run test unit pytest coverage lint fmt bench planted chaos fuzz audit lock pins docs clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.test ## make the environment in .venv, with everything that tests and linters need
	@echo "ready: $(BIN)/featurewatch --help"

demo: $(VENV)/.worker ## three releases of a real model, one tampered with: what featurewatch says
	@$(BIN)/featurewatch demo $(ARGS)

run: $(VENV)/.worker ## the embedded service (API, worker, sweeps) at http://127.0.0.1:8000
	@$(BIN)/featurewatch up $(ARGS)

test: $(VENV)/.test ## linters and all tests, on SQLite, a private Postgres and a private Valkey
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

run_tests = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadscope --no-loadscope-reorder

unit: $(VENV)/.test ## the quick tests, in under a minute: SQLite only, no server, no browser
	@$(run_tests) -n auto -m "not postgres and not broker and not browser and not slow" $(ARGS)

# Beside the linters: mypy has one core, and takes a minute.
pytest: $(VENV)/.test
	@$(run_tests) -n $(WORKERS) $(ARGS)

coverage: $(VENV)/.test ## all tests, and which lines and branches they reach (ARGS=tests/unit for some of them)
	@$(run_tests) -n $(WORKERS) --cov --cov-report=term --cov-report=html $(ARGS)

lint: $(VENV)/.test ## ruff (with bandit's rules), mypy, the direction of imports, spelling and wording
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/python docs/check_phrases.py
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fmt: $(VENV)/.test ## format the code, and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.worker ## our trainer against public ones: speed, quality, memory (about 12 minutes; ARGS=--quick)
	@env -u OMP_WAIT_POLICY $(BIN)/python -m benchmarks.fit $(ARGS)

planted: $(VENV)/.worker ## the planted-truth benchmark: are the verdicts right, and how fast?
	@$(BIN)/python -m benchmarks.planted --scenario all --seed 0 --json $(ARGS)

chaos: $(VENV)/.test ## 50 onboardings while everything is killed at random moments, on both databases (about 15 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/e2e/test_chaos.py --onboardings 50 $(ARGS)

fuzz: $(VENV)/.test ## made-up requests to every operation of the API, over 10,000 on each database (about 10 minutes)
	@OMP_NUM_THREADS=1 FEATUREWATCH_TEST_FUZZ_EXAMPLES=40 $(BIN)/python -m pytest -n 0 -s tests/api/test_fuzz.py $(ARGS)

audit: $(VENV)/.test ## known vulnerabilities of what is installed (asks PyPI)
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/.audited  # PyPI knows no torch==2.13.0+cpu
	@$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(VENV)/.audited $(ARGS)

lock: ## resolve the dependencies again into requirements/*.lock (asks PyPI; ARGS=--upgrade for the newest releases)
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	  $(PYTHON) -m pip install $(quietly) --target "$$tools" --require-hashes -r requirements/bootstrap-uv.lock && \
	  PYTHONPATH="$$tools" $(PYTHON) requirements/compile.py $(ARGS)

pins: ## write the digests of the images' tags into the Dockerfile and its like (asks their registries; ARGS=--check)
	@$(PYTHON) requirements/pins.py $(ARGS)

docs: $(VENV)/.test ## write what comes from the code: pages of settings and commands, parts of the client
	@$(BIN)/python docs/client_code.py
	@$(BIN)/python docs/build.py

clean: ## remove the environment and the caches (never data)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage htmlcov build dist *.egg-info

quietly := --quiet --disable-pip-version-check
# Everything by the locks, then the project itself (setuptools warns of every editable installation). pip compiles what
# it installs on one core. Files that are for other versions of Python cannot be compiled.
install = $(BIN)/python requirements/install.py $(1) --torch $(TORCH) -- --quiet --no-compile && \
  PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(quietly) --no-compile --no-deps --no-build-isolation -e . && \
  { $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true; }

# A stamp for each set of packages: a second call is quick, a changed lock installs again.
# `demo` has what the pages' exports and the guide's Python need too; it is some ten seconds more.
locks := pyproject.toml constraints.txt requirements/install.py requirements/torch-cpu.lock requirements/torch-cuda.lock
$(VENV)/.worker: requirements/demo.lock $(locks) | $(BIN)/python
	@$(call install,demo)
	@touch $@

$(VENV)/.test: requirements/test.lock $(locks) | $(BIN)/python
	@$(call install,test)
	@touch $@ $(VENV)/.worker

# Debian keeps `venv` in a package of its own; virtualenv from pip does the same job without it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "featurewatch needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@echo "making the environment in $(VENV) (about two minutes, once)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV) && tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	  $(PYTHON) -m pip install $(quietly) --target "$$tools" --require-hashes -r requirements/bootstrap-virtualenv.lock && \
	  PYTHONPATH="$$tools" $(PYTHON) -m virtualenv --quiet $(VENV); }
