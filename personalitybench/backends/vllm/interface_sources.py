"""Python sources of a vLLM package, read with ``ast``: definitions, imports, base classes, fields, parameters."""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

from personalitybench.errors import StorageError

PACKAGE = "vllm"
_VERSION_FILE = f"{PACKAGE}/_version.py"
_VERSION = re.compile(r"^__version__\b[^'\"\n]*['\"]([^'\"]+)", re.MULTILINE)
_DEFINITION = re.compile(r"^(?:class|def|async def)[ ]+(\w+)", re.MULTILINE)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Definition:
    """A class, function, variable or attribute.

    Attributes:
        node: Its definition; for a name from another package, the import.
        module: Dotted name of the module that holds it.
        file: File of the module, from the package's folder.
        owner: Class that defines it, if it is a member.
    """

    node: ast.AST
    module: str
    file: str
    owner: str = ""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function, or a field that a class takes."""

    name: str
    by_position: bool
    by_name: bool
    has_default: bool


@dataclass(frozen=True)
class Module:
    """Top level of a module: statements by the names that they bind.

    Attributes:
        names: Bound at run time.
        typing_names: Bound for type checkers alone.
        star_imports: ``from x import *``.
    """

    tree: ast.Module
    names: dict[str, ast.AST] = field(default_factory=dict)
    typing_names: dict[str, ast.AST] = field(default_factory=dict)
    star_imports: list[ast.ImportFrom] = field(default_factory=list)


class Sources:
    """Python files of a vLLM package.

    Args:
        read: Returns the text of a file (``vllm/config/vllm.py``), None if there is none.
        files: Names of all Python files.
    """

    def __init__(self, read: Callable[[str], str | None], files: Iterable[str]) -> None:
        self._read = read
        self.files = frozenset(files)
        self._modules: dict[str, Module | None] = {}
        self._members: dict[ast.ClassDef, dict[str, ast.AST]] = {}

    @classmethod
    def open(cls, path: Path) -> Sources:
        """Open a wheel, an unpacked wheel, an environment's ``site-packages`` or the folder ``vllm`` itself.

        Raises:
            StorageError: There is no vLLM package at that path.
        """
        if path.is_dir():
            root = path if (path / PACKAGE / "__init__.py").is_file() else path.parent
            if not (root / PACKAGE / "__init__.py").is_file() or (root != path and path.name != PACKAGE):
                raise StorageError(
                    f"{path} holds no package {PACKAGE!r}: give a wheel, or the folder it is unpacked to"
                )
            names = (file.relative_to(root).as_posix() for file in (root / PACKAGE).rglob("*.py"))
            return cls(lambda name: (root / name).read_text("utf-8"), names)
        try:
            wheel = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise StorageError(f"{path} does not exist: give a wheel of vLLM, or the folder of the package") from error
        except (OSError, zipfile.BadZipFile) as error:
            raise StorageError(f"{path} is no wheel ({error}): download it again") from error
        names = (name for name in wheel.namelist() if name.startswith(f"{PACKAGE}/") and name.endswith(".py"))
        sources = cls(lambda name: wheel.read(name).decode("utf-8"), names)
        if f"{PACKAGE}/__init__.py" not in sources.files:
            raise StorageError(f"{path} holds no package {PACKAGE!r}: give a wheel of vLLM")
        return sources

    def replaced(self, texts: Mapping[str, str]) -> Sources:
        """Return the same package with other texts in some files."""
        copy = Sources(lambda name: texts[name] if name in texts else self._read(name), self.files)
        changed = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in texts}
        copy._modules = {name: module for name, module in self._modules.items() if name not in changed}
        copy._members = dict(self._members)
        return copy

    def text(self, name: str) -> str | None:
        """Return the text of a file, None if there is none."""
        return self._read(name) if name in self.files else None

    @cached_property
    def version(self) -> str:
        """Version of the package; empty if it says none."""
        match = _VERSION.search(self.text(_VERSION_FILE) or "")
        return match[1] if match else ""

    def file_name(self, module: str) -> str:
        """Return the file of a module; of one that is missing, the file that it would be."""
        path = module.replace(".", "/")
        return f"{path}/__init__.py" if f"{path}/__init__.py" in self.files else f"{path}.py"

    def module(self, name: str) -> Module | None:
        """Return the top level of a module, None if there is no such module.

        Raises:
            StorageError: This Python cannot parse it.
        """
        if name not in self._modules:
            text = self.text(self.file_name(name))
            self._modules[name] = None if text is None else _top_level(_parsed(text, self.file_name(name)))
        return self._modules[name]

    def whole(self, module: str) -> Definition:
        """Return a module as a definition."""
        top = self.module(module)
        assert top is not None  # noqa: S101 (callers ask for the module first)
        return Definition(top.tree, module, self.file_name(module))

    def definers(self, name: str) -> list[str]:
        """Return the files that define a class or function of that name at their top level."""
        return self._definers.get(name, [])

    @cached_property
    def _definers(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for file in sorted(self.files):
            for match in _DEFINITION.finditer(self.text(file) or ""):
                index.setdefault(match[1], []).append(file)
        return index

    def resolve(self, module: str, name: str, _seen: frozenset[tuple[str, str]] = frozenset()) -> Definition | None:
        """Find a name of a module, through imports from one module of the package to the next.

        Returns:
            The definition; the import itself for a name of another package; None if there is no such name.
        """
        top = self.module(module)
        if top is None or (module, name) in _seen:
            return None
        seen = _seen | {(module, name)}
        node = top.names.get(name)
        if node is None and "__getattr__" in top.names:  # imported on demand, and told to type checkers
            node = top.typing_names.get(name)
        if isinstance(node, ast.ImportFrom):
            return self._imported(module, node, name, seen)
        if isinstance(node, ast.Import):
            original = next((alias.name for alias in node.names if alias.asname == name), "")
            if self.module(original) is not None:
                return self.whole(original)
        if node is not None:
            return Definition(node, module, self.file_name(module))
        for star in top.star_imports:
            if (definition := self.resolve(self._source(module, star), name, seen)) is not None:
                return definition
        return self.whole(f"{module}.{name}") if self.module(f"{module}.{name}") is not None else None

    def _imported(
        self, module: str, node: ast.ImportFrom, name: str, seen: frozenset[tuple[str, str]]
    ) -> Definition | None:
        source = self._source(module, node)
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        if source.split(".")[0] != PACKAGE:
            return Definition(node, module, self.file_name(module))
        return self.resolve(source, original, seen)

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        """Dotted name of the module that a statement imports from."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = self.file_name(module).endswith("/__init__.py")
        base = parts[: len(parts) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def member(self, definition: Definition, name: str) -> Definition | None:
        """Find a member of a class: in the class, then in its bases within the package."""
        for parent in self._lineage(definition):
            assert isinstance(parent.node, ast.ClassDef)  # noqa: S101 (of a lineage)
            if parent.node not in self._members:
                self._members[parent.node] = _members(parent.node)
            if (node := self._members[parent.node].get(name)) is not None:
                return Definition(node, parent.module, parent.file, parent.node.name)
        return None

    def parameters(self, definition: Definition) -> list[Parameter] | None:
        """Return the parameters of a function, or of the constructor of a class; None for anything else.

        ``self`` and ``cls`` are left out, and so are ``*args`` and ``**kwargs``.
        """
        if isinstance(definition.node, ast.ClassDef):
            constructor = self.member(definition, "__init__")
            return self._fields(definition) if constructor is None else self.parameters(constructor)
        if not isinstance(definition.node, _FUNCTIONS):
            return None
        arguments = definition.node.args
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
        required = len(names) - len(arguments.defaults)
        parameters = [
            Parameter(name, True, number >= len(arguments.posonlyargs), number >= required)
            for number, name in enumerate(names)
        ]
        is_static = "staticmethod" in map(ast.unparse, definition.node.decorator_list)
        if definition.owner and not is_static:
            del parameters[0]
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            parameters.append(Parameter(argument.arg, False, True, default is not None))
        return parameters

    def _fields(self, definition: Definition) -> list[Parameter]:
        """Fields of a class without a constructor of its own (dataclass, pydantic, msgspec, TypedDict)."""
        fields: dict[str, Parameter] = {}
        for parent in reversed(list(self._lineage(definition))):
            assert isinstance(parent.node, ast.ClassDef)  # noqa: S101 (of a lineage)
            for statement in parent.node.body:
                if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                    continue
                annotation = ast.unparse(statement.annotation)
                if "ClassVar" in annotation or not _is_argument(statement.value):
                    continue
                optional = "NotRequired" in annotation or _has_default(statement.value)
                by_position = not _is_keyword_only(parent.node)
                fields[statement.target.id] = Parameter(statement.target.id, by_position, True, optional)
        return list(fields.values())

    def _lineage(self, definition: Definition) -> Iterator[Definition]:
        """A class, its first base, that one's bases, the second base, ...; each once."""
        waiting, seen = [definition], set()
        while waiting:
            parent = waiting.pop(0)
            if not isinstance(parent.node, ast.ClassDef) or parent.node in seen:
                continue
            seen.add(parent.node)
            yield parent
            bases = [self._base(parent.module, base) for base in parent.node.bases]
            waiting[:0] = [base for base in bases if base is not None]

    def _base(self, module: str, node: ast.expr) -> Definition | None:
        if isinstance(node, ast.Subscript):
            return self._base(module, node.value)
        if isinstance(node, ast.Name):
            return self.resolve(module, node.id)
        if isinstance(node, ast.Attribute):
            holder = self._base(module, node.value)
            if holder is not None and isinstance(holder.node, ast.Module):
                return self.resolve(holder.module, node.attr)
        return None


def _parsed(text: str, file: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise StorageError(
            f"{file}, line {error.lineno}, is not valid in Python {version} ({error.msg}): use the Python that this "
            "vLLM is made for, or unpack the wheel again"
        ) from error


def _top_level(tree: ast.Module) -> Module:
    module = Module(tree)
    _collect(tree.body, module, module.names)
    return module


def _collect(statements: Iterable[ast.stmt], module: Module, names: dict[str, ast.AST]) -> None:
    for statement in statements:
        if isinstance(statement, ast.If) and ast.unparse(statement.test).split(".")[-1] == "TYPE_CHECKING":
            _collect(statement.body, module, module.typing_names)
            _collect(statement.orelse, module, names)
        elif isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            module.star_imports.append(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                names[alias.asname or alias.name.split(".")[0]] = statement
        else:
            names.update(dict.fromkeys(_bound(statement), statement))
            for block in ("body", "handlers", "orelse", "finalbody"):
                if not isinstance(statement, (ast.ClassDef, *_FUNCTIONS)):
                    _collect(_statements(getattr(statement, block, [])), module, names)


def _statements(block: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    for node in block:
        if isinstance(node, ast.ExceptHandler):
            yield from node.body
        elif isinstance(node, ast.stmt):
            yield node


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a statement other than an import binds."""
    if isinstance(statement, (ast.ClassDef, *_FUNCTIONS)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return []
    return [node.id for target in targets for node in ast.walk(target) if _is_stored(node)]


def _is_stored(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _members(node: ast.ClassDef) -> dict[str, ast.AST]:
    """Definitions in the body of a class, and attributes that its methods assign to ``self``."""
    body = Module(ast.Module([], []))
    _collect(node.body, body, body.names)
    assigned: dict[str, ast.AST] = {}
    for function in node.body:
        if not isinstance(function, _FUNCTIONS) or not function.args.args:
            continue
        first = function.args.args[0].arg
        for descendant in ast.walk(function):
            match descendant:
                case ast.Attribute(value=ast.Name(id=holder), attr=name, ctx=ast.Store()) if holder == first:
                    assigned[name] = descendant
    return assigned | body.names


def _is_keyword_only(node: ast.ClassDef) -> bool:
    """True if a class takes its fields by name alone."""
    calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    keywords = [*node.keywords, *(keyword for call in calls for keyword in call.keywords)]
    return any(keyword.arg == "kw_only" and ast.unparse(keyword.value) == "True" for keyword in keywords)


def _is_argument(value: ast.expr | None) -> bool:
    """True if a field is an argument of the constructor."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return not any(keyword.arg == "init" and ast.unparse(keyword.value) == "False" for keyword in keywords)


def _has_default(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in {"field", "Field"}:
        names = {keyword.arg for keyword in value.keywords}
        return bool(value.args) or bool(names & {"default", "default_factory"})
    return value is not None
