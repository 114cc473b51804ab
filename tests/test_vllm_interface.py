"""The comparison of a vLLM package with a table, on a small package of the test's own; vLLM is not needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Dependency

import personalitybench.backends.vllm as plugin
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
from personalitybench.backends.vllm.interface_sources import Sources
from personalitybench.backends.vllm.versions import TESTED, TRIED, is_tested

REPOSITORY = Path(__file__).resolve().parents[1]
PLUGIN = Path(plugin.__file__).parent

FILES = {
    "__init__.py": """
        import typing

        if typing.TYPE_CHECKING:
            from vllm.client import Client, Params
        else:
            def __getattr__(name): ...
        """,
    "_version.py": """
        __version__: str
        __version__ = version = '9.8.7'
        """,
    "client/__init__.py": """
        from .core import *
        from vllm.params import Params, Struct as Request
        """,
    "client/core.py": """
        from torch import nn
        import vllm.params as parameters

        TABLE = {"client": ("core", "Client"), **OTHERS}

        class Base(parameters.Closable):
            size: int
            def __init__(self, size, *, room=1):
                self.size, self.left = size, []
            async def add(self, request_id, prompt, params, lora=None, **more): ...
            @property
            def ready(self): ...
            @staticmethod
            def find(name): ...

        class Client(Base, nn.Module):
            def step(self):
                return self.add(1, "prompt", None)
        """,
    "params.py": """
        from dataclasses import dataclass, field
        from typing import ClassVar

        class Closable:
            def close(self): ...

        @dataclass
        class Struct:
            name: str
            kind: ClassVar[int] = 1

        @dataclass(kw_only=True)
        class Params(Struct):
            extra: dict = field(default_factory=dict)
            needed: int = field()
            made: int = field(init=False)
        """,
}

TABLE: tuple[Requirement, ...] = (
    Name("vllm:Client", "ours.py", "no client"),
    Name("vllm.client:Request", "ours.py", "no request"),
    Attributes("vllm:Client", "ours.py theirs.py", "nothing works", "size left ready close add"),
    Absent("vllm:Client", "ours.py", "it is full", "__slots__"),
    Signature("vllm:Client", "ours.py", "no client", "size", "room"),
    Signature("vllm:Client.add", "ours.py", "requests pass by", "request_id prompt params", "lora"),
    Signature("vllm:Client.step", "ours.py", "no step", exact=True),
    Signature("vllm:Client.find", "ours.py", "no search", "name", exact=True),
    Signature("vllm:Params", "ours.py", "no parameters", "name", "extra needed", exact=True),
    Contains("vllm:Client.step", "ours.py", "requests pass by", ("self.add",)),
    Contains("vllm.client.core", "ours.py", "no client", ("{'client': ('core', 'Client')}",)),
    Inherited("vllm:Client.add", "ours.py", "requests pass by", "Base"),
)


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Write the small package, with replacements in one file."""

    def write(file: str = "", old: str = "", new: str = "") -> Path:
        for name, text in FILES.items():
            path = tmp_path / "vllm" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = "\n".join(line[8:] for line in text.splitlines())
            assert name != file or old in lines
            path.write_text(lines.replace(old, new) if name == file else lines)
        return tmp_path

    return write


def test_compare_same_package_reports_nothing(package: Callable[..., Path]) -> None:
    assert compare(Sources.open(package()), TABLE) == []
    assert len(split(TABLE)) == 16


CHANGES: list[tuple[str, str, str, str, str]] = [
    (
        "renamed parameter",
        "client/core.py",
        "request_id, prompt",
        "request_id, inputs",
        "vllm/client/core.py: Client.add takes (request_id, inputs, params, lora=), "
        "the plug-in relies on (request_id, prompt, params, *, lora, ...) (ours.py: requests pass by)",
    ),
    (
        "parameters in another order",
        "client/core.py",
        "prompt, params",
        "params, prompt",
        "Client.add takes (request_id, params, prompt, lora=)",
    ),
    (
        "new required parameter",
        "client/core.py",
        "params, lora=None",
        "params, salt, lora=None",
        "Client.add takes (request_id, prompt, params, salt, lora=)",
    ),
    ("lost parameter", "client/core.py", "lora=None, ", "", "Client.add takes (request_id, prompt, params),"),
    ("lost argument of an override", "client/core.py", "find(name)", "find()", "Client.find takes (), the plug-in"),
    (
        "new argument of an override",
        "client/core.py",
        "find(name)",
        "find(name, more=1)",
        "Client.find takes (name, more=), the plug-in relies on (name) (ours.py: no search)",
    ),
    (
        "missing attribute",
        "client/core.py",
        "self.left",
        "self.waiting",
        "vllm/client/core.py: Client has no attribute left (ours.py, theirs.py: nothing works)",
    ),
    ("missing method of a base", "params.py", "def close", "def stop", "Client has no attribute close"),
    (
        "moved class",
        "client/__init__.py",
        "from .core import *",
        "",
        "vllm/__init__.py: Client is missing; Client is defined in vllm/client/core.py (ours.py: no client)",
    ),
    ("renamed import", "client/__init__.py", "as Request", "as Job", "vllm/client/__init__.py: Request is missing"),
    ("lost method", "client/core.py", "def add", "def enqueue", "vllm/client/core.py: Client has no method add"),
    (
        "field by name alone",
        "params.py",
        "@dataclass\n",
        "@dataclass(kw_only=True)\n",
        "vllm/params.py: Params takes (*, name, extra=, needed), the plug-in relies on (name, *, extra, needed)",
    ),
    (
        "other call",
        "client/core.py",
        "return self.add(",
        "return self.enqueue(",
        "vllm/client/core.py: Client.step does not contain self.add (ours.py: requests pass by)",
    ),
    (
        "other entry",
        "client/core.py",
        '("core", "Client")',
        '("new", "Client")',
        "the module does not contain {'client': ('core', 'Client')}",
    ),
    (
        "new override",
        "client/core.py",
        "def step(self):",
        "async def add(self, request_id, prompt, params, lora=None): ...\n    def step(self):",
        "vllm/client/core.py: Client.add is defined by Client, not by Base (ours.py: requests pass by)",
    ),
    ("new slots", "client/core.py", "def step", "__slots__ = ()\n    def step", "Client has __slots__ (ours.py: it is"),
]


@pytest.mark.parametrize(
    ("file", "old", "new", "line"), [change[1:] for change in CHANGES], ids=[change[0] for change in CHANGES]
)
def test_compare_changed_package_reports_the_change(
    package: Callable[..., Path], file: str, old: str, new: str, line: str
) -> None:
    lines = compare(Sources.open(package(file, old, new)), TABLE)
    assert sum(line in reported for reported in lines) >= 1, lines
    assert all("\n" not in reported for reported in lines)


def test_compare_missing_module_names_its_file(package: Callable[..., Path]) -> None:
    folder = package()
    (folder / "vllm" / "client" / "core.py").rename(folder / "vllm" / "client" / "engine.py")
    wanted = Name("vllm.client.core:Client", "ours.py", "no client")
    assert compare(Sources.open(folder), [wanted]) == [
        "vllm/client/core.py: there is no such file; Client is defined in vllm/client/engine.py (ours.py: no client)"
    ]


def test_main_wheel_and_folder_give_the_same_report(
    package: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = package()
    wheel = tmp_path / "vllm-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in sorted((folder / "vllm").rglob("*.py")):
            archive.write(path, path.relative_to(folder))
    for path in (folder, folder / "vllm", wheel):
        assert main(TABLE, [str(path)]) == 0
        assert capsys.readouterr().out == "vllm 9.8.7: 16 of 16 things the plug-in relies on are as tried\n"
    assert main([*TABLE, Name("vllm:Server", "ours.py", "no server")], [str(wheel)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "vllm 9.8.7: 16 of 17 things the plug-in relies on are as tried",
        "vllm/__init__.py: Server is missing (ours.py: no server)",
    ]


@pytest.mark.parametrize("content", ["missing", "empty folder", "text", "another wheel", "newer syntax"])
def test_main_bad_path_is_refused_in_one_line(
    package: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "other" / "vllm.whl"
    path.parent.mkdir()
    expected = {
        "missing": "does not exist: give a wheel of vLLM",
        "empty folder": "holds no package 'vllm': give a wheel",
        "text": "is no wheel",
        "another wheel": "holds no package 'vllm': give a wheel of vLLM",
        "newer syntax": "vllm/params.py, line 1, is not valid in Python",
    }[content]
    if content == "empty folder":
        path.mkdir()
    elif content == "text":
        path.write_text("no wheel")
    elif content == "another wheel":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("torch/__init__.py", "")
    elif content == "newer syntax":
        path = package()
        (path / "vllm" / "params.py").write_text("class (:")
    assert main(TABLE, [str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert expected in output.err


def test_command_help_shows_an_example_and_loads_neither_torch_nor_vllm() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['interface', '--help']\n"
        "try:\n"
        "    runpy.run_module('personalitybench.backends.vllm.interface', run_name='__main__')\n"
        "finally:\n"
        "    print(sorted({'torch', 'vllm', 'numpy', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "example: pip download --no-deps vllm==" in done.stdout
    assert done.stdout.endswith("[]\n")


def imports_of_vllm() -> Iterator[tuple[str, str, str]]:
    """Module and name of each import from vLLM in the plug-in, and the file that has it."""
    for file in sorted(PLUGIN.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from ((node.module or "", alias.name, file.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.split(".")[0] == "vllm"], file


def test_table_has_every_import_of_the_plugin() -> None:
    imports = set(imports_of_vllm())
    assert len(imports) > 20
    missing = [
        (module, name, file)
        for module, name, file in sorted(imports)
        if not any(
            re.fullmatch(rf"{re.escape(f'{module}:{name}')}(\..*)?", requirement.target)
            and file in requirement.files.split()
            for requirement in INTERFACE
        )
    ]
    assert missing == []


@pytest.mark.parametrize("requirement", split(INTERFACE), ids=lambda requirement: requirement.target)
def test_table_names_files_that_use_the_thing(requirement: Requirement) -> None:
    assert requirement.reason
    for file in set(requirement.files.split()) - {"lm-eval"}:
        text = (PLUGIN / file).read_text()
        if isinstance(requirement, Attributes | Absent) and requirement.names != "__slots__":
            assert re.search(rf"\b{requirement.names}\b", text), f"{file} does not use {requirement.names}"


def test_documentation_has_the_table_of_tried_versions() -> None:
    text = (REPOSITORY / "docs" / "vllm.md").read_text()
    rows = [f"| {row.version} | {row.build} | {row.check} |" for row in TRIED]
    assert "\n".join(["| vLLM | build | check |", "|---|---|---|", *rows, ""]) in text
    total = len(split(INTERFACE))
    assert f"vllm {TRIED[-1].version}: {total} of {total} things the plug-in relies on are as tried\n" in text


def test_tried_versions_and_the_extra_are_in_the_range() -> None:
    assert all(is_tested(row.version) for row in TRIED)
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (dependency,) = [Dependency(line) for line in extras["vllm"] if line.startswith("vllm")]
    assert dependency.specifier == TESTED
