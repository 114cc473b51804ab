"""Every error that a user can cause, as one small tree: each text says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PersonalityBenchError(Exception):
    """Base of all errors that are reported as one line with exit status 2."""


class ConfigurationError(PersonalityBenchError):
    """A suite, option, name or setting is wrong."""


class DataError(PersonalityBenchError):
    """Questions or descriptions are missing, empty, altered or cannot be fetched."""


class NotHereError(DataError):
    """A file of questions, descriptions or wording is not on this machine."""


class ModelError(PersonalityBenchError):
    """A model cannot be found, fetched, converted or loaded."""


class UnreadableModelError(ModelError):
    """A folder or file of a local model cannot be read: a pipe, a device, a broken link, no permission."""


class JudgeError(PersonalityBenchError):
    """A judge behind an API refuses to work at all: its key, its quota, or what it was asked. Trying on is useless."""


class JudgeModelError(JudgeError):
    """The judge's model is unknown or retired; who knows of successors catches this and names them."""


class MissingDependencyError(PersonalityBenchError):
    """An optional package is not installed."""


class DependencyDriftError(PersonalityBenchError):
    """A library does not behave as this package relies on; the text names the version found and those tried."""


class StorageError(PersonalityBenchError):
    """A file cannot be written or is damaged; what was finished before is kept."""


class NeedsNotMetError(PersonalityBenchError):
    """A method needs something that the chosen backend cannot do."""


def shorten(text: str, most: int = 300) -> str:
    """Return as much of a text as a line of an error should quote."""
    return text if len(text) <= most else f"{text[:most]}..."


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Make the error for a name that is not registered, with the nearest known one."""
    name = shorten(name, 100)
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    there = f"known are {', '.join(names)}" if names else "there are none"  # one of ours is called 'none'
    return ConfigurationError(f"unknown {kind} {name!r}: {hint}{there}")
