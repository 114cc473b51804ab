"""Versions and device of what computes, kept with each session of a call or a fit: appended, never overwritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from personalitybench.files import JsonLines
from personalitybench.versions import package_versions

VERSIONS = "versions.jsonl"
"""A line for each session under other versions, or on another device, than the one before."""


def record_session(
    folder: Path, first: Mapping[str, str] | None = None, *, device: str = "", first_device: str = ""
) -> str:
    """Append versions and device of this session, unless they are those of the session before.

    Args:
        folder: Folder of a call or a fit.
        first: Versions of the first session, where another file records them.
        device: Device of this session; empty where it is not known.
        first_device: Device of the first session, where another file records it.

    Returns:
        What changed since the session before, as text for a message; empty if nothing did.
    """
    now = package_versions()
    known = [(dict(first), first_device)] if first is not None else []
    known += [(line["versions"], str(line.get("device", ""))) for line in _lines(folder)]
    if known and known[-1] == (now, device or known[-1][1]):
        return ""
    JsonLines(folder / VERSIONS).append([{"versions": now, **({"device": device} if device else {})}])
    return _describe_change(*known[-1], now, device) if known else ""


def session_versions(folder: Path) -> list[dict[str, str]]:
    """Versions that :func:`record_session` appended in a folder, in their order."""
    return [line["versions"] for line in _lines(folder)]


def session_devices(folder: Path) -> list[str]:
    """Devices that :func:`record_session` appended in a folder, in their order."""
    return [device for line in _lines(folder) if isinstance(device := line.get("device"), str)]


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in JsonLines(folder / VERSIONS).read() if isinstance(line.get("versions"), dict)]


def other_versions(first: Mapping[str, str], later: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Versions that differ from the first ones, each once, in their order."""
    found = [dict(first)]
    for versions in later:
        if dict(versions) not in found:
            found.append(dict(versions))
    return found[1:]


def other_devices(first: str, later: Iterable[str]) -> list[str]:
    """Devices that differ from the first one, each once, in their order."""
    return list(dict.fromkeys(device for device in later if device and device != first))


def _describe_change(before: Mapping[str, str], device_before: str, now: Mapping[str, str], device: str) -> str:
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    texts = [f"{name} {now.get(name, 'not installed')} (before: {before.get(name, 'none')})" for name in changed]
    if device_before and device and device != device_before:
        texts.append(f"device {device} (before: {device_before})")
    return ", ".join(texts)
