"""Versions of the packages that turn questions into answers, for the provenance of rows and fits."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_versions() -> dict[str, str]:
    """Versions of what is installed of them."""
    found = {}
    for name in ("personalitybench", "lm_eval", "transformers", "torch", "vllm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
