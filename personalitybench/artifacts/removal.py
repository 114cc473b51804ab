"""Removing what fits left: what a user chose, each folder under its lock, first renamed and then deleted.

A kill between the two leaves a folder whose name begins with :data:`~personalitybench.artifacts.kept.REMOVED`: never
half an artifact under its own name. The next removal deletes it.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from personalitybench.artifacts.kept import (
    REMOVED,
    Kept,
    KeptAdapter,
    KeptAnswers,
    KeptFit,
    KeptStore,
    read_fit,
)
from personalitybench.artifacts.sizes import freed_by
from personalitybench.errors import ConfigurationError, StorageError, unknown_name
from personalitybench.files import locked
from personalitybench.temporaries import remove_abandoned

_HOURS = {"h": 1, "d": 24, "w": 24 * 7}


@dataclass(frozen=True)
class Choice:
    """What a user wants removed: all that every given condition holds for.

    Attributes:
        names: Names, or unique beginnings of them.
        interrupted: Fits that were not finished.
        older_than: Not used for so long.
        method: Fits of this method.
        model: Fits and answers of this model, by its name or the last part of it.
        unused: Answers that no fit is made of, and copies of adapters.
        everything: All there is.
        leftovers: Nothing besides what killed processes left, which every removal clears.
    """

    names: Sequence[str] = ()
    interrupted: bool = False
    older_than: timedelta | None = None
    method: str | None = None
    model: str | None = None
    unused: bool = False
    everything: bool = False
    leftovers: bool = False

    @property
    def conditions(self) -> bool:
        """Whether any is given."""
        given = (self.older_than, self.method, self.model)
        return bool(self.names or self.interrupted or self.unused) or any(one is not None for one in given)


def choose(store: KeptStore, choice: Choice, now: datetime | None = None) -> list[Kept]:
    """What is to be removed; may be nothing.

    Args:
        store: What there is.
        choice: What is wanted.
        now: From when ages are counted; None: from now.

    Raises:
        ConfigurationError: No condition, conditions that exclude each other, or a name that nothing has.
    """
    if choice.everything and choice.conditions:
        raise ConfigurationError("--all leaves nothing to choose: leave it or the other conditions out")
    if choice.leftovers and not choice.everything and not choice.conditions:
        return []
    if not choice.everything and not choice.conditions:
        raise ConfigurationError(
            "say what to remove: names, --interrupted, --older-than, --method, --model, --unused, --leftovers, or "
            "--all; 'personalitybench artifacts list' shows what there is"
        )
    if choice.unused and (choice.interrupted or choice.method):
        raise ConfigurationError(
            "--unused is about what fits share, --interrupted and --method about fits: one after the other"
        )
    if choice.method is not None:
        _known("method of a kept fit", choice.method, {_method(item) for item in store.items})
    if choice.model is not None:
        _known("model of a kept fit", choice.model, {name for item in store.items for name in _models(item)})
    named = {store.find(name).folder for name in choice.names}
    limit = (now or datetime.now(UTC)) - (choice.older_than or timedelta())
    return [
        item
        for item in store.items
        if (not named or item.folder in named)
        and (not choice.interrupted or (isinstance(item, KeptFit) and item.state == "interrupted"))
        and (choice.older_than is None or item.used < limit)
        and (choice.method is None or _method(item) == choice.method)
        and (choice.model is None or choice.model in _models(item))
        and (not choice.unused or is_unused(item))
    ]


def is_unused(item: Kept) -> bool:
    """Whether no fit needs it."""
    return isinstance(item, KeptAdapter) or (isinstance(item, KeptAnswers) and not item.fits)


def parse_age(text: str) -> timedelta:
    """Read ``12h``, ``30d`` or ``8w``.

    Raises:
        ConfigurationError: It is none of these.
    """
    found = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if found is None:
        raise ConfigurationError(f"--older-than {text!r}: write hours, days or weeks, such as 12h, 30d or 8w")
    return timedelta(hours=int(found[1]) * _HOURS[found[2]])


def remove(item: Kept) -> int:
    """Remove a folder, as a whole or not at all; returns the bytes that this freed.

    Raises:
        StorageError: A process works in it, it is no longer what was chosen, or it cannot be deleted.
    """
    with locked(item.folder, "working"):
        if isinstance(item, KeptFit) and read_fit(item.folder).state != item.state and item.state == "interrupted":
            raise StorageError(f"{item.folder} was completed meanwhile")
        away = item.folder.with_name(f"{REMOVED}{item.name}-{secrets.token_hex(4)}")
        try:
            item.folder.rename(away)
        except FileNotFoundError:
            return 0  # another prune was faster
        except OSError as error:
            raise StorageError(f"cannot remove {item.folder}: {error.strerror}") from error
    return clear([away])


def clear(removed: Sequence[Path]) -> int:
    """Delete what removals renamed and killed processes left; returns the bytes that this freed.

    A temporary file or folder that a process writes again by now stays.
    """
    freed = freed_by(*removed)
    for path in removed:
        if path.name.startswith(REMOVED):
            _delete(path)
        else:
            remove_abandoned([path])
    return freed - freed_by(*(path for path in removed if path.exists()))


def _delete(folder: Path) -> None:
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # another process deletes it, too
    except OSError as error:
        raise StorageError(f"cannot delete {folder}: {error.strerror}; the next prune tries again") from error


def _known(kind: str, name: str, known: set[str]) -> None:
    if name not in known:
        raise unknown_name(kind, name, known - {""})


def _method(item: Kept) -> str:
    return item.identity.method.name if isinstance(item, KeptFit) and item.identity else ""


def _models(item: Kept) -> set[str]:
    """What the model of an item may be called."""
    if item.about is None:
        return set()
    name = item.about.model.name
    return {name, name.rpartition("/")[2]}
