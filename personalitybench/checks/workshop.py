"""Where fits are made for a check: stores of their own in a temporary folder, watched for what they leave behind.

The user's fits and identifications are neither used nor touched; models, question tables and the official data are
taken from the user's cache, so that nothing is fetched twice.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from personalitybench.artifacts.store import Fit
from personalitybench.files import CACHE_VARIABLE, JsonLines, cache_folder
from personalitybench.methods import Artifact

LINKED = ("models", "official", "tables")
"""What stores take from the user's cache."""

OF_A_FIT = frozenset({"fit.json", "sessions.jsonl", "versions.jsonl", "fitted.json", "work", "artifact"})
"""All that lies in the folder of a fit."""

Report = Callable[[str, int, int], None]


class Workshop:
    """A temporary folder with stores, and what fits in them did that they may not.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.user_cache = cache_folder().resolve()
        self.strays: list[str] = []
        self.changes: list[str] = []

    @contextmanager
    def store(self, name: str) -> Iterator[Path]:
        """Have fits kept in a store of that name, and temporary files beside it."""
        cache, temporary = self.root / name, self.root / f"{name}-tmp"
        for folder in (cache, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        for part in LINKED:
            if not (cache / part).exists():
                (cache / part).symlink_to(cache_folder(part), target_is_directory=True)
        before = {variable: os.environ.get(variable) for variable in (CACHE_VARIABLE, "TMPDIR")}
        os.environ.update({CACHE_VARIABLE: str(cache), "TMPDIR": str(temporary)})
        usual, tempfile.tempdir = tempfile.tempdir, str(temporary)
        try:
            yield cache
        finally:
            tempfile.tempdir = usual
            for variable, value in before.items():
                if value is None:
                    del os.environ[variable]
                else:
                    os.environ[variable] = value

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note files that are written where no fit may write, and settings of the process that it leaves changed."""
        before = process_state()
        writes: set[str] = set()
        _WATCHERS.append(writes.add)
        _watch()
        try:
            yield
        finally:
            _WATCHERS.remove(writes.add)
            self.strays += sorted({path for path in writes if self._is_stray(path)} - set(self.strays))
            after = process_state()
            for name, (value, restore) in before.items():
                if name in after and after[name][0] != value:
                    self.changes.append(f"{name} was {value} and is {after[name][0]} after it")
                    restore(value)

    def make(
        self, store: str, fit: Fit, location: str, device: str | None, report: Report = lambda *_: None
    ) -> tuple[Artifact | None, int]:
        """Make a fit in a store, watched.

        Returns:
            The artifact, and how often the method's ``fit`` has been called in this store.
        """
        with self.store(store):
            with self.watched():
                made = fit.make(location, device=device, report=report)
            calls = sum(1 for _ in JsonLines(fit.folder / "sessions.jsonl").read())
            if fit.folder.is_dir():
                beside = sorted(path.name for path in fit.folder.iterdir() if path.name not in OF_A_FIT)
                self.strays += [f"{name} beside the artifact" for name in beside]
            return made, calls

    def _is_stray(self, path: str) -> bool:
        place = Path(path)
        if place.is_relative_to(self.root) or place.parts[:2] in {("/", "dev"), ("/", "proc"), ("/", "sys")}:
            return False
        if any(place.is_relative_to(self.user_cache / part) for part in LINKED):
            return False
        if place.is_relative_to(self.user_cache):
            return True
        return not _of_a_library(place)


def _of_a_library(path: Path) -> bool:
    """Whether a file is a library's own doing: compiled code, or its cache."""
    if "__pycache__" in path.parts or any(part.startswith(("torchinductor_", ".triton")) for part in path.parts):
        return True
    caches = [platformdirs.user_cache_path(), *(os.environ.get(name) for name in ("HF_HOME", "TORCH_HOME"))]
    return any(path.is_relative_to(Path(cache).resolve()) for cache in caches if cache)


def process_state() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Settings of this process that a fit must leave as they were, each with what sets it."""
    state: dict[str, tuple[Any, Callable[[Any], Any]]] = {"the working directory": (str(Path.cwd()), os.chdir)}
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return state
    return state | {
        "torch's default dtype": (torch.get_default_dtype(), torch.set_default_dtype),
        "torch's default device": (torch.get_default_device(), torch.set_default_device),
        "torch's number of threads": (torch.get_num_threads(), torch.set_num_threads),
        "torch's grad mode": (torch.is_grad_enabled(), torch.set_grad_enabled),
        "torch's choice of deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.use_deterministic_algorithms,
        ),
    }


_WATCHERS: list[Callable[[str], None]] = []
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
_CHANGES: dict[str, tuple[int, int | None]] = {
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.truncate": (0, None),
    "shutil.rmtree": (0, 1),
}
"""Python's audit events of changed files: which argument names the file, and which the open folder that it lies in."""


def _watch() -> None:
    """Listen to Python's audit events, from now on: a hook cannot be taken away, it only hears while one watches."""
    if not hasattr(_watch, "listening"):
        _watch.listening = True  # type: ignore[attr-defined]
        sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHERS:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITING)
        if not writes:
            return
    elif event in _CHANGES:
        name, folder = _CHANGES[event]
        if folder is not None and arguments[folder] not in {-1, None}:
            return  # beneath a folder that is being removed, of which the event told already
        path = arguments[name]
    else:
        return
    if isinstance(path, (str, bytes, os.PathLike)):
        absolute = os.path.realpath(os.fsdecode(path))
        for watcher in tuple(_WATCHERS):
            watcher(absolute)
