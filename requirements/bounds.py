"""Write the requirements of extras at one end of their ranges, for ``pip install -r``.

``make test-lowest`` installs the lower bounds of ``pyproject.toml``, ``make test-newest`` what a fresh machine gets
with the upper bounds lifted::

    python requirements/bounds.py lowest dev
    python requirements/bounds.py newest dev
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def expand(project: dict[str, Any], extras: list[str]) -> Iterator[Requirement]:
    """Yield the project's dependencies and those of extras, with the extras that these name."""
    lines = list(project["dependencies"])
    pending, seen = list(extras), set()
    while pending:
        extra = pending.pop()
        if extra not in seen:
            seen.add(extra)
            lines += project["optional-dependencies"][extra]
            pending += [name for line in lines for name in _own_extras(line, project["name"])]
    for line in lines:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            yield requirement


def _own_extras(line: str, project: str) -> set[str]:
    requirement = Requirement(line)
    return requirement.extras if requirement.name == project else set()


def lowest(requirement: Requirement) -> Requirement:
    """Pin a requirement to its lower bound."""
    bounds = [specifier.version for specifier in requirement.specifier if specifier.operator in {">=", "=="}]
    if not bounds:
        raise SystemExit(f"pyproject.toml: {requirement} has no lower bound: give one with >=")
    requirement.specifier = SpecifierSet(f"=={bounds[0]}")
    return requirement


def newest(requirement: Requirement) -> Requirement:
    """Lift the upper bound of a requirement."""
    kept = [str(specifier) for specifier in requirement.specifier if specifier.operator in {">=", "!="}]
    requirement.specifier = SpecifierSet(",".join(kept))
    return requirement


def main() -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("end", choices=["lowest", "newest"], help="which end of each range")
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml, with those that they name")
    given = parser.parse_args()
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    bound = {"lowest": lowest, "newest": newest}[given.end]
    print("\n".join(sorted({str(bound(requirement)) for requirement in expand(project, given.extras)})))


if __name__ == "__main__":
    main()
