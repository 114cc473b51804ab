"""Static comparison of a vLLM package with a table of requirements; nothing of vLLM is imported.

Called by :mod:`~personalitybench.backends.vllm.interface`, which holds the table.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from personalitybench.backends.vllm.interface_sources import Definition, Parameter, Sources
from personalitybench.errors import StorageError


@dataclass(frozen=True)
class Requirement:
    """Something in vLLM that the plug-in relies on.

    Attributes:
        target: ``module:name`` or ``module:Class.method``, by the module that the plug-in imports it from.
        files: Files of the plug-in that rely on it, separated by blanks; ``lm-eval`` for its own vLLM model.
        reason: Consequence of its absence, in a few words.
    """

    target: str
    files: str
    reason: str


@dataclass(frozen=True)
class Name(Requirement):
    """A class, function or variable that can be imported."""


@dataclass(frozen=True)
class Attributes(Requirement):
    """Attributes, properties, fields or methods of a class and its bases, separated by blanks."""

    names: str


@dataclass(frozen=True)
class Absent(Requirement):
    """Attributes that a class and its bases must not have, separated by blanks."""

    names: str


@dataclass(frozen=True)
class Signature(Requirement):
    """Parameters of a function, a method (without ``self``) or a class.

    Attributes:
        positional: The first parameters by position, in this order, separated by blanks.
        keyword: Parameters that can be passed by name, separated by blanks.
        exact: There are no others: the plug-in overrides or replaces it. Otherwise others must have defaults.
    """

    positional: str = ""
    keyword: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Contains(Requirement):
    """Python expressions that occur in a module, class or function: calls that vLLM makes, entries of its tables."""

    expressions: tuple[str, ...]


@dataclass(frozen=True)
class Inherited(Requirement):
    """A method that a class takes from one of its bases, which the plug-in patches.

    Attributes:
        definer: Name of the base class.
    """

    definer: str


def split(requirements: Sequence[Requirement]) -> list[Requirement]:
    """Return the requirements with one name or expression each, as they are counted and reported."""
    parts: list[Requirement] = []
    for requirement in requirements:
        if isinstance(requirement, Attributes | Absent):
            parts += [replace(requirement, names=name) for name in requirement.names.split()]
        elif isinstance(requirement, Contains):
            parts += [replace(requirement, expressions=(expression,)) for expression in requirement.expressions]
        else:
            parts.append(requirement)
    return parts


def compare(sources: Sources, requirements: Sequence[Requirement]) -> list[str]:
    """Return the differences between a vLLM package and the requirements, one line each; empty if there are none."""
    return [
        f"{difference} ({requirement.files.replace(' ', ', ')}: {requirement.reason})"
        for requirement in split(requirements)
        if (difference := _difference(sources, requirement)) is not None
    ]


def _difference(sources: Sources, requirement: Requirement) -> str | None:
    definition = _locate(sources, requirement.target)
    if isinstance(definition, str):
        return definition
    path = requirement.target.partition(":")[2] or "the module"
    difference: str | None = None
    match requirement:
        case Attributes(names=attribute):
            difference = None if sources.member(definition, attribute) else f"{path} has no attribute {attribute}"
        case Absent(names=attribute):
            difference = f"{path} has {attribute}" if sources.member(definition, attribute) else None
        case Signature():
            difference = _changed_signature(sources.parameters(definition), path, requirement)
        case Contains(expressions=(expression,)):
            wanted = ast.parse(expression, mode="eval").body
            if not any(_matches(node, wanted) for node in ast.walk(definition.node)):
                difference = f"{path} does not contain {expression}"
        case Inherited(definer=definer) if definition.owner != definer:
            difference = f"{path} is defined by {definition.owner}, not by {definer}"
    return f"{definition.file}: {difference}" if difference else None


def _locate(sources: Sources, target: str) -> Definition | str:
    """Find a target, or say what is missing."""
    module, _, path = target.partition(":")
    name, _, member = path.partition(".")
    file = sources.file_name(module)
    if sources.module(module) is None:
        return f"{file}: there is no such file{_elsewhere(sources, module, name)}"
    definition = sources.resolve(module, name) if name else sources.whole(module)
    if definition is None:
        return f"{file}: {name} is missing{_elsewhere(sources, module, name)}"
    if not member:
        return definition
    return sources.member(definition, member) or f"{definition.file}: {name} has no method {member}"


def _elsewhere(sources: Sources, module: str, name: str) -> str:
    """Name the files that define a missing class or function, for the person who adapts the plug-in."""
    files = [file for file in sources.definers(name) if file != sources.file_name(module)] if name else []
    return f"; {name} is defined in {', '.join(files[:3])}" if files else ""


def _matches(node: ast.AST, wanted: ast.expr) -> bool:
    """True if a node is the expression; a mapping matches each mapping that has its entries."""
    if isinstance(node, ast.Dict) and isinstance(wanted, ast.Dict):
        return set(_entries(wanted)) <= set(_entries(node))
    return type(node) is type(wanted) and ast.dump(node) == ast.dump(wanted)


def _entries(mapping: ast.Dict) -> list[tuple[str, str]]:
    pairs = zip(mapping.keys, mapping.values, strict=True)
    return [(ast.unparse(key), ast.unparse(value)) for key, value in pairs if key is not None]


def _changed_signature(parameters: Sequence[Parameter] | None, path: str, wanted: Signature) -> str | None:
    if parameters is None:
        return f"{path} is neither a function nor a class"
    positional, keyword = wanted.positional.split(), wanted.keyword.split()
    by_position = [parameter.name for parameter in parameters if parameter.by_position]
    by_name = {parameter.name for parameter in parameters if parameter.by_name}
    others = [parameter for parameter in parameters if parameter.name not in {*positional, *keyword}]
    unfilled = [parameter for parameter in others if wanted.exact or not parameter.has_default]
    if by_position[: len(positional)] == positional and by_name.issuperset(keyword) and not unfilled:
        return None
    reliance = [*positional, *(["*", *keyword] if keyword else []), *([] if wanted.exact else ["..."])]
    return f"{path} takes ({', '.join(_written(parameters))}), the plug-in relies on ({', '.join(reliance)})"


def _written(parameters: Sequence[Parameter]) -> Iterator[str]:
    """Parameters as Python writes them, without annotations."""
    star = False
    for parameter in parameters:
        if not parameter.by_position and not star:
            star = True
            yield "*"
        yield parameter.name + ("=" if parameter.has_default else "")


def main(requirements: Sequence[Requirement], arguments: Sequence[str] | None = None) -> int:
    """Compare a wheel or a folder with requirements and print the differences.

    Returns:
        Exit status: 0 no differences, 1 differences, 2 no such package.
    """
    parser = argparse.ArgumentParser(
        prog="python -m personalitybench.backends.vllm.interface",
        description="Compare a version of vLLM with what the plug-in relies on. Reads sources; needs no GPU.",
        epilog="example: pip download --no-deps vllm==0.33.0 && "
        "python -m personalitybench.backends.vllm.interface vllm-0.33.0-*.whl",
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="wheel of vLLM, or folder that holds the package")
    path: Path = parser.parse_args(arguments).path
    try:
        sources = Sources.open(path)
        differences = compare(sources, requirements)
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    total = len(split(requirements))
    agreement = f"{total - len(differences)} of {total} things the plug-in relies on are as tried"
    lines = [f"vllm {sources.version or '(version unknown)'}: {agreement}", *dict.fromkeys(differences)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if differences else 0
