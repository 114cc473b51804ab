"""What this machine can run: backends, models, judges, keys (present or not, never their values)."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from personalitybench import __version__
from personalitybench.errors import PersonalityBenchError, StorageError
from personalitybench.files import cache_folder
from personalitybench.judging.base import list_profiles
from personalitybench.models import DEMO_MODEL, packaged_path
from personalitybench.network import Client, certificate_variables, find_problems, proxy_variables
from personalitybench.pages import HOW_TO_GET_PLOTS, can_plot
from personalitybench.questions import DATA_VARIABLE
from personalitybench.versions import describe_range, installed_libraries


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: machine, library, backend, model, judge, data, page, network, key.
        name: What.
        ready: Whether it can be used now; None where that is no question.
        detail: What was found, or what to do.
    """

    area: str
    name: str
    ready: bool | None
    detail: str


def examine() -> list[Finding]:
    """Look at this machine; imports nothing heavy and goes to no network."""
    areas = {
        "machine": _machine,
        "library": _libraries,
        "backend": _backends,
        "model": _models,
        "judge": _judges,
        "data": _data,
        "page": _page,
        "network": _network,
        "key": _keys,
    }
    return [finding for area, look in areas.items() for finding in _findings(area, look)]


def _findings(area: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what was found; what ends the search is a finding, too."""
    try:
        yield from look()
    except (PersonalityBenchError, OSError) as error:
        yield Finding(area, "", False, str(error))


def show(findings: list[Finding], console: Console) -> None:
    """Print findings as a table."""
    table = Table("", "", "ready", Column("", overflow="fold"))
    marks = {True: Text("yes", style="green"), False: Text("no", style="red"), None: Text()}
    previous = ""
    for finding in findings:
        if previous and finding.area != previous:
            table.add_section()
        area = finding.area if finding.area != previous else ""
        table.add_row(area, finding.name, marks[finding.ready], finding.detail)
        previous = finding.area
    console.print(table)


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "personalitybench", None, f"{__version__} on Python {platform.python_version()}")
    yield Finding("machine", "processors", None, str(os.cpu_count()))
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    yield Finding("machine", "NVIDIA GPUs", None, ", ".join(devices) or "none")
    try:
        folder = cache_folder()
    except StorageError as error:
        yield Finding("machine", "cache", False, str(error))
        return
    writable = os.access(folder, os.W_OK)
    yield Finding("machine", "cache", writable, f"{folder}" + ("" if writable else ": read-only, nothing new is kept"))


def _libraries() -> Iterator[Finding]:
    for library in installed_libraries():
        tried = "not recorded" if library.tried is None else describe_range(library.tried)
        advice = "" if library.is_tried else f": install '{library.distribution}{tried}', or compare results with care"
        yield Finding("library", library.name, library.is_tried, f"{library.found} (tried: {tried}){advice}")


def _backends() -> Iterator[Finding]:
    wanted = {
        "hf": (("torch", "transformers", "accelerate"), "hf"),
        "vllm": (("vllm",), "vllm"),
        "local-chat-completions": (("tenacity", "aiohttp"), "api"),
        "ray": (("ray",), "ray"),
    }
    for name, (packages, extra) in wanted.items():
        missing = [package for package in packages if find_spec(package) is None]
        detail = ", ".join(f"{package} {_version(package)}" for package in packages if package not in missing)
        if missing:
            detail = f"pip install 'personalitybench[{extra}]' (lacks {', '.join(missing)})"
        yield Finding("backend", name, not missing, detail)


def _models() -> Iterator[Finding]:
    present = packaged_path(DEMO_MODEL).is_dir()
    where = "in the cache" if present else f"comes with the package {DEMO_MODEL.package} on first use"
    ready = present or find_spec("pip") is not None
    yield Finding("model", DEMO_MODEL.name, ready, f"{DEMO_MODEL.hub_id}: {where if ready else 'needs pip'}")


def _judges() -> Iterator[Finding]:
    for name, profile, reason in list_profiles():
        if profile is None:
            yield Finding("judge", name, False, reason)
            continue
        ready = profile.provider != "offline" or find_spec("transformers") is not None
        yield Finding("judge", name, ready, profile.summary if ready else "pip install 'personalitybench[hf]'")


def _data() -> Iterator[Finding]:
    from personalitybench.downloads import COMMIT  # noqa: PLC0415

    yield Finding("data", "sample", True, "bundled")
    local = os.environ.get(DATA_VARIABLE)
    cached = cache_folder() / "official" / COMMIT
    if local:
        yield Finding("data", "official", Path(local).is_dir(), f"{DATA_VARIABLE}={local}")
    else:
        detail = f"in the cache ({cached})" if cached.is_dir() else "downloaded on first use"
        yield Finding("data", "official", cached.is_dir(), detail)


def _page() -> Iterator[Finding]:
    ready = can_plot()
    yield Finding("page", "plots", ready, f"altair {_version('altair')}" if ready else HOW_TO_GET_PLOTS)


def _network() -> Iterator[Finding]:
    problems: dict[str, list[str]] = {}
    clients: tuple[Client, ...] = ("httpx", "requests", "aiohttp")
    for client in clients:
        for line in find_problems(client):
            problems.setdefault(line.partition("=")[0], []).append(f"{line} ({client})")
    for name in dict.fromkeys([*(name for name, _ in proxy_variables()), *certificate_variables()]):
        yield Finding("network", name, name not in problems, "; ".join(problems.get(name, ["can be used"])))


def _keys() -> Iterator[Finding]:
    for name, use in (("OPENAI_API_KEY", "models and judges behind an API"), ("HF_TOKEN", "gated models")):
        yield Finding("key", name, bool(os.environ.get(name)), f"{use}: {'set' if os.environ.get(name) else 'not set'}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
