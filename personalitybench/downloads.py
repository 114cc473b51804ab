"""Pinned downloads from public repositories: each file is known by its git blob id before it is fetched.

The paper's data have no licence, so they are downloaded by each user, verified, cached, and never redistributed.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
import stamina
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from personalitybench.dry import is_dry
from personalitybench.errors import DataError, NotHereError
from personalitybench.files import CACHE_VARIABLE, cache_folder, git_blob_id
from personalitybench.locks import hold_lock
from personalitybench.network import check_address, check_network
from personalitybench.temporaries import find_abandoned, remove_abandoned, temporary_file
from personalitybench.transfers import Limits, Transfer

REPOSITORY = "RUCAIBox/NPTI"
COMMIT = "630d2a236e5c8d2484fbd5b71249aedd1fc44195"
MIRROR_VARIABLE = "PERSONALITYBENCH_MIRROR"

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
LIMITS = Limits(total=600.0, rate=1000.0, window=40.0)
"""Limits of one file, all tries together; the largest has 3 MB."""

_MAX_BYTES = 64_000_000
_DIGITS = 18  # of a length: what is longer exceeds the limit all the same
_BLOCK = 1 << 12  # small: a body is read on only where a block is full, and a slow one must be seen


@dataclass(frozen=True)
class Release:
    """A commit of a public repository."""

    repository: str
    commit: str

    @property
    def url(self) -> str:
        """Base address of its files."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}"


PAPER = Release(REPOSITORY, COMMIT)
JUDGE_PROMPTS = Release("Z1ivan/DPN-LE", "3fb5e7273cae73aea3bef6c084178940726c2fb8")
"""Where the paper's prompts for judges are under a licence (``judging/official_rubric.py``)."""


class _IncompleteError(DataError):
    """The connection broke off, the body was cut short, or the server failed: worth another try."""


def fetch_pinned(path: str, blob_id: str, release: Release = PAPER) -> Path:
    """Return a verified local copy of a file of a pinned release, downloading it on first use.

    Args:
        path: Path inside the repository, e.g. ``NPTI/dataset/test/Openness.json``.
        blob_id: Its git blob id, 40 hex digits.
        release: The release that it belongs to.

    Raises:
        DataError: Not reachable, not there, cut short, or not the pinned content; nothing wrong is kept.
        NotHereError: This is a dry run, and no copy is on this machine.
    """
    folder = cache_folder("official", release.commit)
    target = folder / path
    if target.exists():
        _verify(target, blob_id, cached=True)
        return target
    if is_dry():
        raise NotHereError(f"{path} of {release.repository} is not on this machine yet: it is fetched on first use")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(Path(f"{target}.lock"), f"fetching {path}"):
            remove_abandoned(find_abandoned(target.parent, target.name))
            if not target.exists():  # another process may have fetched it while we waited
                _download(f"{_base_url(release)}/{path}", target, blob_id)
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else f"name a writable folder in {CACHE_VARIABLE}"
        raise DataError(f"cannot write to the cache folder {target.parent} ({error.strerror}): {hint}") from error
    return target


def _base_url(release: Release) -> str:
    """The mirror named in the environment (one folder for the files of all releases), else the public repository."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return release.url
    check_address(MIRROR_VARIABLE, mirror)
    return mirror.rstrip("/")


def _download(url: str, target: Path, blob_id: str) -> None:
    advice = f"check the network or set {MIRROR_VARIABLE} to a mirror"
    if "/dataset/" in url:
        advice += ", or name a local copy of the data with --data-dir"

    def attempt_all(transfer: Transfer[None], temporary: Path) -> None:
        for attempt in stamina.retry_context(on=_IncompleteError, attempts=3, wait_initial=0.2, wait_max=5.0):
            with attempt:
                _stream(url, temporary, advice, transfer)

    check_network("requests", url)
    with temporary_file(target) as (_, temporary):
        Transfer[None](lambda transfer: attempt_all(transfer, temporary)).run(url, LIMITS, advice)
        _verify(temporary, blob_id, cached=False, url=url)
        temporary.chmod(0o644)
        temporary.replace(target)


def _stream(url: str, destination: Path, advice: str, transfer: Transfer[None]) -> None:
    """Download one body with a progress bar."""
    try:
        with requests.get(url, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS)) as response:
            if response.status_code >= 500:
                raise _IncompleteError(f"{url} answered {response.status_code}: {advice}")
            if response.status_code != 200:
                raise DataError(f"{url} answered {response.status_code} {response.reason}: {advice}")
            if transfer.cancelled.is_set():  # before the file is opened, which the caller has deleted by now
                return
            length = response.headers.get("Content-Length", "")
            expected = int(length[:_DIGITS]) if length.isdecimal() else None
            received = 0
            label = TextColumn("{task.description}", markup=False)
            columns = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn())
            console = Console(stderr=True)
            bars = Progress(*columns, transient=True, console=console, disable=not console.is_terminal)
            with bars as progress, destination.open("wb") as stream:
                bar = progress.add_task(f"downloading {destination.name.split('.')[1]}", total=expected)
                for block in response.iter_content(_BLOCK):
                    if transfer.cancelled.is_set():
                        return
                    stream.write(block)
                    received += len(block)
                    if received > _MAX_BYTES:
                        raise DataError(f"{url} sent more than {_MAX_BYTES / 1e6:g} MB: {advice}")
                    transfer.received += len(block)
                    progress.update(bar, completed=received)
    except requests.exceptions.RequestException as error:
        host = urlsplit(url).netloc
        raise _IncompleteError(f"cannot download {url} from {host} ({type(error).__name__}): {advice}") from error
    if expected is not None and received < expected:
        raise _IncompleteError(f"{url} broke off after {received} of {expected} bytes: {advice}")


def _verify(path: Path, blob_id: str, *, cached: bool, url: str = "") -> None:
    found = git_blob_id(path)
    if found == blob_id:
        return
    if cached:
        raise DataError(
            f"cached file {path} is corrupted (blob {found[:12]}, pinned {blob_id[:12]}): "
            "delete it and it is downloaded again"
        )
    raise DataError(
        f"{url} is not the pinned content (blob {found[:12]}, pinned {blob_id[:12]}); nothing was kept: "
        f"check the server named in {MIRROR_VARIABLE}"
    )
