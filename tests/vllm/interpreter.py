"""Triton on a CPU: vLLM's second model runner and this project's kernels run in Triton's interpreter.

A program like ``tests.vllm.engines``, with the calls of ``tests.vllm.kernel_calls``. Triton gets a backend that
compiles nothing: all that is asked of it is to be there. Slow, so for few tokens; in float32 only, because the
interpreter cuts off what bfloat16 would round.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
os.environ["TRITON_DEFAULT_BACKEND"] = "cpu"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import triton.backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class _Driver(DriverBase):  # type: ignore[misc]  # Triton publishes no types
    """What Triton and vLLM ask before they run a kernel."""

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def main(spec: Path, result: Path) -> None:
    """Give Triton a backend, and only then import what asks for it."""
    any_compiler = next(iter(triton.backends.backends.values())).compiler
    triton.backends.backends["cpu"] = triton.backends.Backend(compiler=any_compiler, driver=_Driver)
    from tests.vllm import engines, kernel_calls

    engines.main(spec, result, {**engines.CALLS, **kernel_calls.CALLS})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
