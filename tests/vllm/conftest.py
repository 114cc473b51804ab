"""What the tests of the vLLM plug-in share: tiny models, interventions, engines that stay for the session.

They need an environment with vLLM of their own: ``make test-vllm``. Engines run in the test's process; what needs
another one (workers of their own, Triton's interpreter, a compiled model) starts ``tests.vllm.engines``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before torch and vLLM are imported. One thread: tiny models are several times slower with two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# vLLM 0.32 divides by the time of its progress bar, and a bar that is switched off has none.
os.environ.pop("TQDM_DISABLE", None)


def pytest_configure(config: pytest.Config) -> None:
    """Have vLLM's sockets, which it never deletes, in a folder that goes. Its name is short: so must a socket's be."""
    os.environ["VLLM_RPC_BASE_PATH"] = tempfile.mkdtemp(prefix="pb-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["VLLM_RPC_BASE_PATH"], ignore_errors=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make the tiny model of a family, once."""
    from tests.vllm.models import config_of, save_model

    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        path = root / family
        if not path.is_dir():
            save_model(path, config_of(family))
        return path

    return folder


@pytest.fixture(scope="session")
def interventions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three interventions for the tiny models."""
    from tests.vllm.models import save_intervention

    root = tmp_path_factory.mktemp("interventions")
    return [save_intervention(root / str(seed), seed) for seed in range(3)]


@pytest.fixture(scope="session")
def engine(models: Callable[[str], Path]) -> Callable[..., Any]:
    """Start an engine in this process, or give the one that was started with the same settings.

    All stay until the end: vLLM takes down what engines of a process share with the first that goes.
    """
    from tests.vllm.engines import open_engine

    opened: dict[str, Any] = {}

    def start(family: str = "llama", **options: Any) -> Any:
        key = repr((family, sorted(options.items())))
        if key not in opened:
            opened[key] = open_engine(models(family), **options)
        return opened[key]

    return start
