"""A method's settings for people: type and limits from the pydantic model, descriptions from its docstrings."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}
_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "pattern": "like {}",
}
_ENTRY = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?: (.*)$")
_ROLE = re.compile(r":\w+:`~?([^`]*)`")


@dataclass(frozen=True)
class DescribedSetting:
    """A setting.

    Attributes:
        name: Its name.
        default: What it is where nobody sets it, as a user would write it.
        values: What it may be.
        about: What it is for; empty where the docstring does not say.
    """

    name: str
    default: str
    values: str
    about: str


def describe_settings(settings: type[BaseModel]) -> list[DescribedSetting]:
    """Describe every setting, in the order of the class."""
    try:
        schema = settings.model_json_schema()
    except PydanticInvalidForJsonSchema:  # a type that only Python knows
        schema = {}
    about = _from_docstrings(settings)
    return [
        DescribedSetting(
            name,
            _default(field.default),
            _values(schema.get("properties", {}).get(name, {}), schema.get("$defs", {})) or str(field.annotation),
            about.get(name) or field.description or "",
        )
        for name, field in settings.model_fields.items()
    ]


def _default(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


def _values(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        return _values(shared.get(str(schema["$ref"]).rpartition("/")[2], {}), shared)
    if "anyOf" in schema:
        return " or ".join(_values(part, shared) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema.get("type", ""))
    words = _TYPES.get(kind, kind)
    if kind == "array" and "items" in schema:
        words = f"list of {_values(schema['items'], shared)}"
    return ", ".join([words, *(text.format(schema[name]) for name, text in _LIMITS.items() if name in schema)])


def _from_docstrings(settings: type[BaseModel]) -> dict[str, str]:
    """What the sections "Attributes" say, of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel and kind.__doc__:
            found |= dict(_entries(inspect.cleandoc(kind.__doc__)))
    return found


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Names and descriptions of a Google-style section."""
    _, _, section = text.partition("Attributes:\n")
    name, words = "", [""]
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break  # the next section
        entry = _ENTRY.match(line)
        if entry:
            yield name, " ".join(words)
            name, words = entry[1], [_ROLE.sub(r"\1", entry[2])]
        elif line.strip():
            words.append(_ROLE.sub(r"\1", line.strip()))
    yield name, " ".join(words)
