"""Versions of what computes, kept with each session of a call or a fit: appended, never overwritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from personalitybench.files import JsonLines
from personalitybench.versions import package_versions

VERSIONS = "versions.jsonl"
"""A line for each session under other versions than the one before."""


def record_session(folder: Path, first: Mapping[str, str] | None = None) -> str:
    """Append the versions of this session, unless they are those of the session before.

    Args:
        folder: Folder of a call or a fit.
        first: Versions of the first session, where another file records them.

    Returns:
        The packages that changed since the session before, as text for a message; empty if none did.
    """
    now = package_versions()
    known = [dict(first)] if first is not None else []
    known += session_versions(folder)
    if known and known[-1] == now:
        return ""
    JsonLines(folder / VERSIONS).append([{"versions": now}])
    return _describe_change(known[-1], now) if known else ""


def session_versions(folder: Path) -> list[dict[str, str]]:
    """Versions that :func:`record_session` appended in a folder, in their order."""
    return [line["versions"] for line in JsonLines(folder / VERSIONS).read() if isinstance(line.get("versions"), dict)]


def other_versions(first: Mapping[str, str], later: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Versions that differ from the first ones, each once, in their order."""
    found = [dict(first)]
    for versions in later:
        if dict(versions) not in found:
            found.append(dict(versions))
    return found[1:]


def _describe_change(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    texts = (f"{name} {now.get(name, 'not installed')} (before: {before.get(name, 'none')})" for name in changed)
    return ", ".join(texts)
