# Set up once, then run. `make help` lists the targets. Recipes are POSIX sh; paths may contain spaces.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-next test-oracles test-onnx doctest check lint types docs lock clean
.NOTPARALLEL:

# Everything that would go to HOME stays here, so a read-only HOME does no harm.
export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export XDG_CACHE_HOME := $(CURDIR)/.cache/xdg
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export TFDS_DATA_DIR := $(CURDIR)/.cache/tfds
export KERAS_HOME := $(CURDIR)/.cache/keras
export IPYTHONDIR := $(CURDIR)/.cache/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/.cache/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/.cache/jupyter
export JUPYTER_RUNTIME_DIR := $(CURDIR)/.cache/jupyter/runtime
export UV_CACHE_DIR := $(CURDIR)/.cache/uv
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

PYTHON ?=
TESTS ?=
VENV := .venv
RUN := $(VENV)/bin/python
SETUP := PYTHON='$(PYTHON)' sh .ci/setup.sh
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal

help: ## this list
	@echo "make <target>; PYTHON=/path/to/python3.11 chooses the interpreter"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
	  printf '  %-13s %s\n' "$$name" "$$what"; done

setup: ## make the environment in .venv (others do so by themselves)
	@$(SETUP) $(VENV)

demo: setup ## run the main job into runs/demo and say where its report is
	@$(RUN) -m experiments.align --directory runs/demo

test: setup ## the fast tests
	@$(PYTEST) -m "not slow"

test-slow: setup ## the slow tests
	@$(PYTEST) -m slow

test-next: ## the fast tests on Python 3.12 and the newest jax, if there
	@sh .ci/test_next.sh $(TESTS)

test-oracles: ## beside PEFT, transformers, TRL, Tunix
	@PYTHON='$(PYTHON)' sh .ci/setup.sh .venv-oracles requirements-oracles.txt
	@HF_HUB_OFFLINE=1 .venv-oracles/bin/python -m pytest -q -rs -p no:cacheprovider -n 2 --dist loadfile \
	  tests/*/test_*_oracle.py tests/contracts/test_trainers_real.py

test-onnx: ## ONNX files beside onnxruntime
	@PYTHON='$(PYTHON)' sh .ci/setup.sh .venv-onnx requirements-onnx.txt
	@.venv-onnx/bin/python -m pytest -q -rs -p no:cacheprovider tests/export/test_onnx.py

lint: setup ## formatting and lint
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .

types: setup ## type checks
	@$(VENV)/bin/pyrefly check --min-severity error

doctest: setup ## the examples of docstrings and of README.md
	@$(PYTEST) --doctest-modules rlx kernels_pallas
	@$(RUN) -m pytest -q --doctest-glob='README.md' README.md

docs: setup ## the documentation pages, into docs/_build
	@$(SETUP) $(VENV) requirements-docs.lock
	@$(RUN) -m sphinx -W -n --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

check: lint types test doctest test-slow docs ## everything that CI runs on one Python

lock: ## renew uv.lock and the hashed requirement files (needs uv)
	uv lock
	uv export -q --frozen --no-emit-project --no-annotate --extra data --extra export --extra plot --extra interop \
	  --extra bayes --extra parquet --extra image --extra photos \
	  --group test --group lint --no-header -o requirements.lock
	uv export -q --frozen --no-emit-project --no-annotate --only-group docs --no-header -o requirements-docs.lock

clean: ## remove environments, caches and build results; keep runs/
	rm -rf .venv .venv-next .venv-oracles .venv-onnx .cache docs/_build dist build
