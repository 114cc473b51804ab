"""The installed vLLM has everything that the plug-in relies on, and the comparison reports each thing that goes."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from personalitybench.backends.vllm.interface import INTERFACE
from personalitybench.backends.vllm.interface_check import (
    Absent,
    Attributes,
    Contains,
    Inherited,
    Name,
    Requirement,
    Signature,
    compare,
    main,
    split,
)
from personalitybench.backends.vllm.interface_sources import Definition, Sources

SPEC = find_spec("vllm")  # not imported: its sources are read
if SPEC is None or SPEC.origin is None:
    pytest.skip("vLLM has an environment of its own: make test-vllm", allow_module_level=True)

FOLDER = Path(SPEC.origin).parent
Mutation = tuple[str, Sources]
"""Words of the line that must be reported, and the package without the thing."""


@pytest.fixture(scope="module")
def installed() -> Sources:
    return Sources.open(FOLDER)


def test_installed_vllm_has_everything_that_the_plugin_relies_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(INTERFACE, [str(FOLDER)]) == 0
    total = len(split(INTERFACE))
    assert f": {total} of {total} things the plug-in relies on are as tried\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "requirement", split(INTERFACE), ids=lambda requirement: f"{type(requirement).__name__}-{requirement.target}"
)
def test_compare_vllm_without_a_thing_reports_it(installed: Sources, requirement: Requirement) -> None:
    mutations = list(mutations_of(installed, requirement))
    assert mutations
    for words, sources in mutations:
        lines = compare(sources, [requirement])
        assert len(lines) == 1, words
        assert words in lines[0]
        assert lines[0].endswith(f"({requirement.files.replace(' ', ', ')}: {requirement.reason})")


@pytest.mark.parametrize("module", sorted({requirement.target.partition(":")[0] for requirement in INTERFACE}))
def test_compare_vllm_without_a_module_reports_it(installed: Sources, module: str) -> None:
    file = installed.file_name(module)
    sources = Sources(installed.text, installed.files - {file})
    affected = [part for part in split(INTERFACE) if part.target.partition(":")[0] == module]
    lines = compare(sources, affected)
    assert len(lines) == len(affected)
    assert all("there is no such file" in line for line in lines)


def mutations_of(installed: Sources, requirement: Requirement) -> Iterator[Mutation]:
    """Take the thing out of the package, in each way in which it may go."""
    module, _, path = requirement.target.partition(":")
    name, _, member = path.partition(".")
    definition = owner = resolved(installed, module, name)
    if member:
        method = installed.member(definition, member)
        assert method is not None
        definition = method
    match requirement:
        case Name():
            yield f"{name} is missing", renamed(installed, installed.file_name(module), name)
        case Attributes(names=attribute):
            sources = installed
            while (defined := sources.member(resolved(sources, module, name), attribute)) is not None:
                sources = renamed(sources, defined.file, attribute)
            yield f"{path} has no attribute {attribute}", sources
        case Absent(names=attribute):
            yield f"{path} has {attribute}", with_member(installed, definition, f"{attribute} = None")
        case Contains(expressions=(expression,)):
            word = next(word for word in reversed(re.findall(r"\w+", expression)) if word not in (name, member))
            yield f"does not contain {expression}", renamed(installed, definition.file, word)
        case Inherited():
            yield "is defined by", with_member(installed, owner, f"def {member}(self): ...")
        case Signature():
            yield from signature_mutations(installed, definition, requirement, path)


def resolved(sources: Sources, module: str, name: str) -> Definition:
    """Definition of a name, or of the whole module for an empty one."""
    definition = sources.resolve(module, name) if name else sources.whole(module)
    assert definition is not None
    return definition


def signature_mutations(
    installed: Sources, definition: Definition, requirement: Signature, path: str
) -> Iterator[Mutation]:
    """Rename each parameter that is relied on, and add one without a default; to an override, any other."""
    constructor = definition
    if isinstance(definition.node, ast.ClassDef):
        method = installed.member(definition, "__init__")
        for field in [] if method else [*requirement.positional.split(), *requirement.keyword.split()]:
            declared = installed.member(definition, field)
            assert declared is not None
            yield f"{path} takes (", renamed(installed, declared.file, field)
        if method is None:
            yield f"{path} takes (", with_member(installed, definition, "new_field: int")
            return
        constructor = method

    def rename(old: str) -> Callable[[ast.arguments], None]:
        def edit(arguments: ast.arguments) -> None:
            (argument,) = (argument for argument in (*arguments.args, *arguments.kwonlyargs) if argument.arg == old)
            argument.arg = f"renamed_{old}"

        return edit

    def require(arguments: ast.arguments) -> None:
        arguments.kwonlyargs.append(ast.arg("new_parameter"))
        arguments.kw_defaults.append(None)

    def allow(arguments: ast.arguments) -> None:
        require(arguments)
        arguments.kw_defaults[-1] = ast.Constant(None)

    for parameter in [*requirement.positional.split(), *requirement.keyword.split()]:
        yield f"renamed_{parameter}", with_arguments(installed, constructor, rename(parameter))
    yield "new_parameter", with_arguments(installed, constructor, require)
    if requirement.exact:
        yield "new_parameter=", with_arguments(installed, constructor, allow)


def renamed(sources: Sources, file: str, word: str) -> Sources:
    """Rename a word in a file."""
    text = sources.text(file)
    assert text is not None
    changed = re.sub(rf"\b{re.escape(word)}\b", f"renamed_{word}", text)
    assert changed != text
    return sources.replaced({file: changed})


def with_member(sources: Sources, definition: Definition, statement: str) -> Sources:
    """Add a statement to the body of a class, before all others."""
    assert isinstance(definition.node, ast.ClassDef)
    lines = (sources.text(definition.file) or "").splitlines()
    first = definition.node.body[0]
    lines.insert(first.lineno - 1 - len(getattr(first, "decorator_list", ())), " " * first.col_offset + statement)
    return sources.replaced({definition.file: "\n".join(lines)})


def with_arguments(sources: Sources, definition: Definition, edit: Callable[[ast.arguments], None]) -> Sources:
    """Change the parameters of a function."""
    text = sources.text(definition.file) or ""
    position = (getattr(definition.node, "lineno", 0), getattr(definition.node, "col_offset", 0))
    (function,) = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.lineno, node.col_offset) == position
    )
    edit(function.args)
    function.decorator_list = []
    lines = text.splitlines()
    lines[function.lineno - 1 : function.end_lineno] = [textwrap.indent(ast.unparse(function), " " * position[1])]
    return sources.replaced({definition.file: "\n".join(lines)})
