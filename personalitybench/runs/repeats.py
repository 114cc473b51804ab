"""Refuses entries of a suite that would give one row of a board twice. ``Run.check`` and dry runs call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

from lm_eval.api.registry import get_model
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.openai_completions import LocalChatCompletion

from personalitybench.backends.loading import LOCAL_BACKENDS
from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.files import content_hash
from personalitybench.judging.base import load_profile
from personalitybench.methods import create_method
from personalitybench.model_identity import model_record
from personalitybench.runs.call_folders import CallFolders
from personalitybench.runs.suite import MethodSpec, ModelSpec


def refuse_repeats(calls: CallFolders) -> None:
    """Refuse a suite whose entries give equal row identities: they cannot be rows of one board.

    Args:
        calls: The suite, with what its methods and models are identified by.

    Raises:
        ConfigurationError: Two models, methods, seeds or judges are the same to a board; the text names both entries.
    """
    suite = calls.suite
    for first, second in _pairs(suite.models, lambda spec: _model_key(calls, spec)):
        one, other = suite.models[first], suite.models[second]
        raise ConfigurationError(
            f"suite: models.{first} and models.{second} ({other.name}) give the same row of a board twice: "
            f"{_difference(one, other)}. Leave one out, or give it a suite of its own"
        )
    for first, second in _pairs(suite.methods, lambda spec: _method_key(calls, spec)):
        method, other_method = suite.methods[first], suite.methods[second]
        if method.choose_on:
            why = "both choose a strength on the dev half under the same settings"
        else:
            shared = [strength for strength in method.strengths if strength in other_method.strengths]
            if method.strengths and other_method.strengths and not shared:
                continue
            why = f"both have strength {shared[0]} and the same settings" if shared else "their settings are the same"
        raise ConfigurationError(
            f"suite: methods.{first} and methods.{second} ({method.name}) give the same row of a board twice: {why}. "
            "Leave one out, or change its settings"
        )
    for first, second in _pairs(suite.seeds, lambda seed: seed):
        raise ConfigurationError(
            f"suite: seeds.{first} and seeds.{second} are both {suite.seeds[first]}: name each seed once"
        )
    for first, second in _pairs(suite.judges, lambda name: load_profile(name).id):
        raise ConfigurationError(
            f"suite: judges.{first} and judges.{second} have the same id {load_profile(suite.judges[first]).id!r}: "
            "name each judge once, or give one of the profiles another id"
        )


def _pairs(entries: Sequence[Any], key: Callable[[Any], Any]) -> Iterator[tuple[int, int]]:
    """Yield the places of entries with equal keys."""
    keys = [key(entry) for entry in entries] if len(entries) > 1 else []
    return ((first, second) for first, second in combinations(range(len(keys)), 2) if keys[first] == keys[second])


def _model_key(calls: CallFolders, spec: ModelSpec) -> Any:
    """Identity of a model in a row, and what its backend decides of the protocol."""
    try:
        record = calls.model_record(spec)
    except ModelError:  # not on this machine: told where it is loaded
        record = model_record(spec.backend, {"model": spec.name, **spec.args}, spec.revision, {})
    return record, _protocol_key(spec.backend)


def _protocol_key(backend: str) -> Any:
    """What a backend decides of a row's protocol: its chat template, and the settings that it cannot take."""
    if backend in LOCAL_BACKENDS:
        return "local"
    try:
        model_type = get_model(backend)
    except (ImportError, KeyError, ValueError):  # told where it is loaded
        return backend
    return issubclass(model_type, TemplateAPI), issubclass(model_type, LocalChatCompletion)


def _method_key(calls: CallFolders, spec: MethodSpec) -> Any:
    """Identity of a method in a row, besides its strengths."""
    method = create_method(spec.name, spec.settings, calls.context(calls.suite.seeds[0]))
    settings = content_hash(method.settings.model_dump(mode="json"))
    return spec.name, settings, bool(spec.choose_on)


def _difference(one: ModelSpec, other: ModelSpec) -> str:
    left, right = ({**spec.model_dump(exclude={"args"}), **_named(spec.args)} for spec in (one, other))
    differing = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    if not differing:
        return "they are the same"
    return f"they differ in {', '.join(differing)} only, and the weights are the same"


def _named(args: dict[str, Any]) -> dict[str, Any]:
    return {f"args.{key}": value for key, value in args.items()}
