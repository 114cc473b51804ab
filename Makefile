# Two targets set up all they need in environments of their own: `make demo` and `make test`.
# Both can be run again; the second time they use what is there.

PYTHON ?= python3
# transformers models run on this PyTorch. On Linux without a GPU the CPU build saves several GB of downloads:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

SOURCES = pyproject.toml Makefile

.PHONY: help demo test test-slow lint check wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       compare four ways of prompting a personality on a small real model"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take over a minute, too"
	@echo "make check      ruff and mypy"
	@echo "make wheel      build the wheel"
	@echo "make clean      remove the environments and what was built (downloads stay in the cache)"

demo: .venv/ready
	.venv/bin/personalitybench run harness/demo.yaml

test: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv-test/ready
	.venv-test/bin/pytest -n 2 --dist worksteal

check: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

wheel: .venv-test/ready
	.venv-test/bin/python -m build --wheel

# An environment is ready when its last step, this file, is there: an interrupted install starts again.
.venv/ready: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet $(INDEX) "$(TORCH)" --editable '.[hf,plots]'
	touch $@

.venv-test/ready: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make test PYTHON=python3.12")'
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet --upgrade pip
	.venv-test/bin/python -m pip install --quiet $(INDEX) "$(TORCH)" --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-test build dist .mypy_cache .pytest_cache .ruff_cache
