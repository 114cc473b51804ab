"""Model arguments that are refused: secrets, which would be written to results, and code of a model's folder.

Suites and judge profiles refuse secrets when they are read. Commands refuse such code unless the user allowed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from personalitybench.errors import ConfigurationError
from personalitybench.outside_files import require_json_values
from personalitybench.redaction import CREDENTIALS_IN_TEXT, is_address_with_secret, is_secret
from personalitybench.remote_code import OFF, TRUST_OPTION, TRUST_VARIABLE, is_remote_code_allowed

_NAMED_IN_TEXT = re.compile(
    r"([\w-]{1,100})[\"']?\s*[=:]\s*[\"']?(?!(?:true|false|none|null)\b)[^\s,}\"']", re.IGNORECASE
)
_CODE_NAMES = re.compile(
    r"trust_remote_code|(?:worker|worker_extension|scheduler)_cls|logits_processors?|custom_pipeline|.*_plugin"
)
_PICKLED = {"load_format": {"pt", "npcache"}, "weights_only": {"false"}, "use_safetensors": {"false"}}


_USE_VARIABLE = (
    "is a secret, and settings are written to results: leave it out and set an environment variable: HF_TOKEN for the "
    "hub, OPENAI_API_KEY for a server"
)


def refuse_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a model or settings of a judge that hold no secret by name, at any depth.

    Raises:
        ValueError: One is a secret; the text names it, never its value.
    """
    for path, value in leaves(arguments):
        if any(is_secret(name) for name in path) and value is not None and not isinstance(value, bool):
            raise ValueError(f"{'.'.join(path)!r} {_USE_VARIABLE}")
        if isinstance(value, str) and is_address_with_secret(value):
            raise ValueError(
                f"{'.'.join(path)!r} is an address with a key or password in it, and settings are written to results: "
                "leave that out and set the environment variable OPENAI_API_KEY"
            )
    return arguments


def refuse_secrets_in_text(text: str, option: str) -> None:
    """Refuse arguments as text in any form (``name=value``, JSON) that hold a secret by name.

    Raises:
        ConfigurationError: One is a secret; the text names it, never its value.
    """
    for name in _NAMED_IN_TEXT.findall(text):
        if is_secret(name):
            raise ConfigurationError(f"{option}: {name!r} {_USE_VARIABLE}")
    if CREDENTIALS_IN_TEXT.search(text):
        raise ConfigurationError(f"{option}: an address with a password {_USE_VARIABLE}")


Arguments = Annotated[dict[str, Any], AfterValidator(require_json_values), AfterValidator(refuse_secrets)]
"""Arguments of a model in a suite or profile."""


def refuse_remote_code(arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments with which a library runs code of a model's folder, unless the user allowed it.

    Args:
        arguments: Of a model, or settings of a judge.
        where: Suite or profile, for the error.

    Raises:
        ConfigurationError: The user did not allow it.
    """
    if is_remote_code_allowed():
        return
    for path, value in leaves(arguments):
        if any(map(_CODE_NAMES.fullmatch, path)) and str(value).lower() not in OFF:
            runs = "runs code of the model's folder"
        elif str(value).lower() in _PICKLED.get(path[-1], ()):
            runs = "reads pickled weights, which can run code"
        else:
            continue
        raise ConfigurationError(
            f"{where}: {'.'.join(path)!r} {runs}: if you trust that code, add {TRUST_OPTION} or set {TRUST_VARIABLE}=1"
        )


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values of nested mappings and lists that are neither, each with its path."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from leaves(part, (*path, str(name)))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from leaves(part, (*path, str(number)))
    elif path:
        yield path, value
