# One command per task. All of them work on a fresh machine with Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV ?= .venv
# Number of pytest processes, and arguments for pytest, e.g. `make test ARGS='-k webhooks'`.
WORKERS ?= 3
ARGS ?=
# Build of torch: auto (pip's default, verified if a lock has it), cpu, cuda, any (requirements/install.py).
TORCH ?= auto

BIN := $(VENV)/bin
# Several processes share the cores, so torch's idle threads must not spin.
export OMP_WAIT_POLICY ?= PASSIVE
# The tests start many processes, and each would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo run test unit pytest coverage lint fmt bench planted chaos fuzz audit lock pins docs clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.test ## create the environment in .venv, with everything for tests and linters
	@echo "ready: $(BIN)/featurewatch --help"

demo: $(VENV)/.worker ## run featurewatch on three releases of a real model, one of them tampered with
	@$(BIN)/featurewatch demo $(ARGS)

run: $(VENV)/.worker ## start the embedded service (API, worker, sweeps) at http://127.0.0.1:8000
	@$(BIN)/featurewatch up $(ARGS)

test: $(VENV)/.test ## run the linters and all tests, on SQLite, a private Postgres and a private Valkey
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

run_tests = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadscope --no-loadscope-reorder

unit: $(VENV)/.test ## run the quick tests in under a minute: SQLite only, no server, no browser
	@$(run_tests) -n auto -m "not postgres and not broker and not browser and not slow" $(ARGS)

# In parallel with the linters: mypy uses one core and takes a minute.
pytest: $(VENV)/.test
	@$(run_tests) -n $(WORKERS) $(ARGS)

coverage: $(VENV)/.test ## run all tests and report line and branch coverage (ARGS=tests/unit for some of them)
	@$(run_tests) -n $(WORKERS) --cov --cov-report=term --cov-report=html $(ARGS)

lint: $(VENV)/.test ## run ruff (with bandit's rules) and mypy; check imports, spelling and wording
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/python docs/check_phrases.py
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fmt: $(VENV)/.test ## format the code and apply ruff's fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.worker ## compare our trainer with public ones: speed, quality, memory (about 12 minutes; ARGS=--quick)
	@env -u OMP_WAIT_POLICY $(BIN)/python -m benchmarks.fit $(ARGS)

planted: $(VENV)/.worker ## run the planted-truth benchmark: accuracy and speed of the verdicts
	@$(BIN)/python -m benchmarks.planted --scenario all --seed 0 --json $(ARGS)

chaos: $(VENV)/.test ## run 50 onboardings and kill processes at random, on both databases (about 15 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/e2e/test_chaos.py --onboardings 50 $(ARGS)

fuzz: $(VENV)/.test ## fuzz every operation of the API, over 10,000 requests on each database (about 10 minutes)
	@OMP_NUM_THREADS=1 FEATUREWATCH_TEST_FUZZ_EXAMPLES=40 $(BIN)/python -m pytest -n 0 -s tests/api/test_fuzz.py $(ARGS)

audit: $(VENV)/.test ## list known vulnerabilities of installed packages (queries PyPI)
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/.audited  # PyPI does not know torch==2.13.0+cpu
	@$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(VENV)/.audited $(ARGS)

lock: ## resolve the dependencies into requirements/*.lock (queries PyPI; ARGS=--upgrade for the newest releases)
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	  $(PYTHON) -m pip install $(quietly) --target "$$tools" --require-hashes -r requirements/bootstrap-uv.lock && \
	  PYTHONPATH="$$tools" $(PYTHON) requirements/compile.py $(ARGS)

pins: ## pin the images in the Dockerfile and elsewhere to digests (queries their registries; ARGS=--check)
	@$(PYTHON) requirements/pins.py $(ARGS)

docs: $(VENV)/.test ## generate docs and client code: pages of settings and commands, client types
	@$(BIN)/python docs/client_code.py
	@$(BIN)/python docs/build.py

clean: ## remove the environment and the caches (never data)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage htmlcov build dist *.egg-info

quietly := --quiet --disable-pip-version-check
# Installs the locked packages, then the project itself (setuptools warns about each editable installation). Bytecode is
# compiled separately, because pip uses one core. Files for other versions of Python cannot be compiled.
install = $(BIN)/python requirements/install.py $(1) --torch $(TORCH) -- --quiet --no-compile && \
  PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(quietly) --no-compile --no-deps --no-build-isolation -e . && \
  { $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true; }

# One stamp file per set of packages: a second call is quick, and a changed lock reinstalls.
# `demo` also has the packages for the pages' exports and the guide's Python; they take about ten seconds more.
locks := pyproject.toml constraints.txt requirements/install.py requirements/torch-cpu.lock requirements/torch-cuda.lock
$(VENV)/.worker: requirements/demo.lock $(locks) | $(BIN)/python
	@$(call install,demo)
	@touch $@

$(VENV)/.test: requirements/test.lock $(locks) | $(BIN)/python
	@$(call install,test)
	@touch $@ $(VENV)/.worker

# Debian packages `venv` separately; virtualenv from pip works without it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "featurewatch needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@echo "making the environment in $(VENV) (about two minutes, once)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV) && tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	  $(PYTHON) -m pip install $(quietly) --target "$$tools" --require-hashes -r requirements/bootstrap-virtualenv.lock && \
	  PYTHONPATH="$$tools" $(PYTHON) -m virtualenv --quiet $(VENV); }
