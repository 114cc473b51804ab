"""Where the contributed folders lie (tasks, judges, harness, leaderboards): beside the package or inside the wheel."""

from __future__ import annotations

from pathlib import Path

from personalitybench.errors import DataError

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = ("tasks", "judges", "harness", "leaderboards")


def bundled(*parts: str) -> Path:
    """Find a bundled folder or file, in a checkout and in an installed wheel alike.

    Args:
        parts: The folder (one of tasks, judges, harness, leaderboards) and what is below it.

    Raises:
        DataError: It does not exist: the installation is damaged.
    """
    if not parts or parts[0] not in _FOLDERS:
        raise ValueError(f"the bundled folders are {', '.join(_FOLDERS)}, not {parts[:1]}")
    for root in (_PACKAGE / "_bundled", _PACKAGE.parent):
        candidate = root.joinpath(*parts)
        if candidate.exists():
            return candidate
    raise DataError(f"bundled file {'/'.join(parts)} is missing: install personalitybench again")
