"""Readers of YAML and JSON files from outside: limits on size, depth, aliases and numbers, one line for each failure.

Suites, judge profiles, rubrics, prices, boards, results, records of fits and adapters are read here.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import yaml
from pydantic import AfterValidator

from personalitybench.errors import ConfigurationError

MAX_YAML_BYTES = 1_000_000
MAX_JSON_BYTES = 256_000_000
MAX_LINE_BYTES = 32_000_000
MAX_DEPTH = 50
MAX_YAML_NODES = 20_000
"""Keys and values of a YAML file, an alias counting as all that it stands for."""

_MAX_YAML_TEXT = 4_000_000  # characters, counted the same way
_MAX_DIGITS = 300  # of a whole number: more than a float can hold
_LONG_NUMBER = re.compile(rf"\d{{{_MAX_DIGITS + 1}}}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_EXPONENT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+\Z")  # YAML 1.1 wants a point and a sign: 1.0e+3
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast


class UnreadableError(ValueError):
    """A text that is not the YAML or JSON that it should be, or exceeds a limit; the text says what and where."""


def load_yaml(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: The file.
        what: The kind of file, for errors: ``suite``.

    Raises:
        ConfigurationError: It cannot be read, is not YAML, is no mapping, repeats a key or exceeds a limit.
    """
    try:
        content = parse_yaml(read_text(path, MAX_YAML_BYTES))
    except OSError as error:
        raise ConfigurationError(f"cannot read {what} {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{what} {path} is not YAML: byte {error.start} is not UTF-8") from error
    except UnreadableError as error:
        raise ConfigurationError(f"{what} {path} {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{what} {path} is not a mapping of keys to values")
    for key, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{what} {path}: {key!r} is {value}, which is no finite number")
    return content


def parse_yaml(text: str) -> Any:
    """Read YAML as ``yaml.safe_load`` does, within limits; ``1e-3`` is a number, too.

    Raises:
        UnreadableError: It is not YAML, repeats a key or exceeds a limit.
    """
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f"{_place(error.problem_mark)}: "
        raise UnreadableError(f"is not YAML: {place}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UnreadableError(f"is not YAML: {' '.join(str(error).split())}") from error
    except UnreadableError:
        raise
    except Exception as error:  # whatever the constructor of an explicit tag raises
        raise UnreadableError(f"is not YAML: {type(error).__name__}: {error}") from error


def dump_yaml(value: Any) -> str:
    """Write YAML that :func:`parse_yaml` reads as the same; keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_json(
    text: str, *, finite: bool = True, constants: Collection[str] = (), unique: bool = False, **options: Any
) -> Any:
    """Read JSON as ``json.loads`` does, within limits.

    Args:
        text: The text.
        finite: Refuse NaN, infinities and halves of surrogate pairs, which neither JSON nor UTF-8 has.
        constants: Of ``NaN``, ``Infinity`` and ``-Infinity``, those that are taken all the same.
        unique: Refuse objects that repeat a key.
        options: Those of ``json.loads``, such as ``strict`` and ``parse_int``.

    Raises:
        UnreadableError: It is not JSON or exceeds a limit.
    """
    hooks: dict[str, Any] = {"parse_constant": _constant_reader(constants)} if finite else {}
    if unique:
        hooks["object_pairs_hook"] = _unique_keys
    if _LONG_NUMBER.search(text):
        hooks["parse_int"] = _parse_integer
    try:
        value = json.loads(text, **hooks | options)
    except RecursionError as error:
        raise UnreadableError(f"nested more than {MAX_DEPTH} deep") from error
    except MemoryError as error:
        raise UnreadableError("too large for the memory") from error
    except UnreadableError:
        raise
    except ValueError as error:
        raise UnreadableError(str(error)) from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise UnreadableError(f"nested more than {MAX_DEPTH} deep")
    if finite and _SURROGATE.search(text) and any(map(is_broken, _strings(value))):
        raise UnreadableError(r"it holds half of a surrogate pair (\ud800 to \udfff), which is no character")
    return value


def read_text(path: Path, limit: int) -> str:
    """Read a regular file of UTF-8 text, with or without a byte order mark.

    Raises:
        OSError: It cannot be read.
        UnreadableError: It is no regular file or is larger than ``limit`` bytes.
        UnicodeDecodeError: It is not UTF-8.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe or device may never end
        raise UnreadableError("is no regular file")
    with open_regular(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise UnreadableError(f"is larger than {limit / 1e6:g} MB")
    return data.decode("utf-8-sig")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read; reading a pipe or a device may never end.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a stream with their numbers, from 1.

    Raises:
        UnreadableError: A line is longer than ``MAX_LINE_BYTES``.
    """
    for number in count(1):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise UnreadableError(f"has a line of more than {MAX_LINE_BYTES / 1e6:g} MB, line {number}")
        yield number, line


def require_json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings all of whose values JSON can hold.

    Raises:
        ValueError: One is a date, bytes, a set, a number that is not finite or a text with half of a surrogate pair;
            the error names its key.
    """
    for path, value in _leaves(values):
        if is_broken(path) or (isinstance(value, str) and is_broken(value)):
            raise ValueError(f"{path!r} holds half of a surrogate pair, which is no character")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path!r} is {value}, which is no finite number")
        if not isinstance(value, str | int | float | bool | None):
            raise ValueError(  # noqa: TRY004 (pydantic reports no other)
                f"{path!r} is a value of type {type(value).__name__}, which JSON does not have: put it in quotes"
            )
    return values


JsonMapping = Annotated[dict[str, Any], AfterValidator(require_json_values)]
"""Settings that are written to results."""


def _check_events(text: str) -> None:
    """Refuse depth and expanded size before anything is built; a node's size is that of all beneath it."""
    open_nodes: list[tuple[str | None, int, int]] = []  # anchor, nodes, characters
    anchors: dict[str, tuple[int, int] | None] = {}

    def count(nodes: int, characters: int) -> None:
        if not open_nodes:
            return
        anchor, own_nodes, own_characters = open_nodes[-1]
        open_nodes[-1] = (anchor, own_nodes + nodes, own_characters + characters)
        if own_nodes + nodes > MAX_YAML_NODES or own_characters + characters > _MAX_YAML_TEXT:
            raise UnreadableError(f"has more than {MAX_YAML_NODES:,} keys and values, aliases written out")

    for event in yaml.parse(text, Loader=_PARSER):
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) >= MAX_DEPTH:
                raise UnreadableError(f"is nested more than {MAX_DEPTH} deep ({_place(event.start_mark)})")
            open_nodes.append((event.anchor, 1, 0))
            if event.anchor:
                anchors[event.anchor] = None
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes, characters = open_nodes.pop()
            if anchor:
                anchors[anchor] = (nodes, characters)
            count(nodes, characters)
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                anchors[event.anchor] = (1, len(event.value))
            count(1, len(event.value))
        elif isinstance(event, yaml.AliasEvent):
            size = anchors.get(event.anchor or "", (0, 0))
            if size is None:
                raise UnreadableError(f"has an alias of what it stands in ({_place(event.start_mark)})")
            count(*size)


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(_PARSER):  # type: ignore[misc]
    """``yaml.SafeLoader`` that refuses repeated keys and endless numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = key.value if key.tag == _MERGE else self.construct_object(key)
            if first := seen.get((key.tag == _MERGE, name)):
                lines = f"{first.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise UnreadableError(f"has the key {key.value!r} twice, on lines {lines}: keep one")
            seen[key.tag == _MERGE, name] = key
        result: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return result


def _construct_integer(loader: Any, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MAX_DIGITS:
        raise UnreadableError(f"has a number of {len(node.value)} digits ({_place(node.start_mark)})")
    return int(yaml.SafeLoader.construct_yaml_int(loader, node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_integer)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """``yaml.SafeDumper`` that quotes text which :class:`_Loader` would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _constant_reader(taken: Collection[str]) -> Callable[[str], float]:
    def read(name: str) -> float:
        if name not in taken:
            raise UnreadableError(f"{name} is no number of JSON")
        return float(name)

    return read


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UnreadableError(f"the key {twice!r:.80} stands twice in an object: keep one")
    return value


def _parse_integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS:
        raise UnreadableError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def is_broken(text: str) -> bool:
    """Return True if a text holds half of a surrogate pair, which UTF-8 does not have."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}.{number}")
    else:
        yield path, value
