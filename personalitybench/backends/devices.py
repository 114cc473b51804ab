"""The device on which a loaded model of lm-eval computes, as text for provenance."""

from __future__ import annotations

import platform
from typing import Any


def describe_device(model: Any) -> str:
    """Return device and number format: ``cpu x86_64, float32``, ``cuda NVIDIA H200, bfloat16``.

    Empty for a model that computes elsewhere, and where lm-eval does not say which model it has.
    """
    config = getattr(getattr(getattr(model, "model", None), "llm_engine", None), "vllm_config", None)
    if config is not None:
        device: Any = getattr(getattr(config, "device_config", None), "device_type", None)
        dtype: Any = getattr(getattr(config, "model_config", None), "dtype", None)
    else:
        device = getattr(model, "device", None)
        dtype = getattr(getattr(model, "model", None), "dtype", None)
    if device is None or dtype is None:
        return ""
    return f"{_name(str(device))}, {str(dtype).removeprefix('torch.')}"


def _name(device: str) -> str:
    kind = device.partition(":")[0]
    if kind == "cpu":
        return f"cpu {platform.machine()}".strip()
    if kind != "cuda":
        return kind
    import torch  # noqa: PLC0415 (heavy, and optional)

    try:
        return f"cuda {torch.cuda.get_device_name(None if device == kind else device)}"
    except (AssertionError, RuntimeError, ValueError):  # no such device in this process
        return kind
