"""What a user wrote: pairs of an option, and pydantic's verdicts as one line (place, what was wrong, nearest name)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from personalitybench.argument_policy import refuse_secrets
from personalitybench.errors import ConfigurationError, shorten
from personalitybench.host_policy import allow_hosts_of
from personalitybench.outside_files import UnreadableError, parse_yaml, require_json_values
from personalitybench.redaction import redact
from personalitybench.remote_code import allow_remote_code

M = TypeVar("M", bound=BaseModel)

_UNION_TAGS = ("list[", "literal[", "dict[")  # pydantic's names for the members of a union


def validate(model: type[M], value: Mapping[str, Any], where: str) -> M:
    """Validate a mapping.

    Args:
        model: Pydantic model.
        value: What the user wrote.
        where: Which file or option it comes from, for the error.

    Raises:
        ConfigurationError: The first thing that is wrong, in one line.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {_explain(error, model)}") from error


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Read ``name=value`` pairs; a value is read as YAML, so ``true``, ``3`` and ``0.5`` are what they look like.

    Raises:
        ConfigurationError: A pair without ``=``, a value that is not YAML, a name that is given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigurationError(f"{option} {redact(pair)!r}: write NAME=VALUE")
        if name.strip() in found:
            raise ConfigurationError(f"{option}: {name.strip()!r} is given twice: give it once")
        try:
            found[name.strip()] = parse_yaml(text)
        except UnreadableError as error:
            raise ConfigurationError(f"{option} {redact(pair)!r}: the value {error}: quote it") from error
    try:
        return require_json_values(found)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from error


def parse_model_arguments(text: str) -> dict[str, Any]:
    """Read ``--model-args name=value,name=value``; ``trust_remote_code=true`` and hosts in it are the user's word.

    Raises:
        ConfigurationError: As :func:`parse_pairs`, or an argument is a secret.
    """
    arguments = parse_pairs([part for part in text.split(",") if part], "--model-args")
    try:
        refuse_secrets(arguments)
    except ValueError as error:
        raise ConfigurationError(f"--model-args: {error}") from error
    if arguments.get("trust_remote_code") is True:
        allow_remote_code()
    allow_hosts_of(arguments)
    return arguments


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    # A misspelt key is often what makes another one missing, so it is told first; a union's constant says least.
    order = {"extra_forbidden": 0, "literal_error": 2}
    first = min(error.errors(include_url=False), key=lambda found: order.get(found["type"], 1))
    location = first["loc"]
    place = ".".join(str(part) for part in location if not str(part).startswith(_UNION_TAGS))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, location[:-1]))
        near = difflib.get_close_matches(str(location[-1])[:100], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        there = f"known are {', '.join(known)}" if known else "there are none"
        return f"unknown key {shorten(place, 100)!r}: {hint}{there}{more}"
    if first["type"] == "missing":
        return f"{place!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = (
        "" if first["type"] in {"value_error", "too_long"} else f", not {shorten(repr(redact(first['input'])), 100)}"
    )
    return f"{place + ': ' if place else ''}{shorten(message)}{given}{more}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Field names of the (nested) model that a location of pydantic's points into."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None or not isinstance(part, str):
            continue
        field = current.model_fields.get(part)
        if field is None:  # the tag of a union
            continue
        current = _model_in(field.annotation)
    return set(current.model_fields) if current else set()


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
