"""A LoRA adapter on disk, checked before a backend runs it: what peft saved, and nothing that could run code.

Every backend that serves adapters per request serves the same ones: plain LoRA on linear layers. What changes an
adapter's meaning beyond that (DoRA, whole modules saved beside it) is refused by name. Nothing heavy is imported.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, PositiveInt

from personalitybench.errors import ConfigurationError, NeedsNotMetError, StorageError
from personalitybench.files import read_json
from personalitybench.validation import validate

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"

SETTLED_SECONDS = 2.0
"""Age at which a file's times are sure to tell it from one written since; file systems' clocks are coarse."""

# Keys of peft's LoraConfig (0.21) that make an adapter something else than plain LoRA on linear layers, in words.
# vLLM refuses those that it knows of; the others peft cannot serve to single rows, or not from these weights alone.
_OTHER_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "alora_invocation_tokens": "activated LoRA",
        "arrow_config": "Arrow routing",
        "kasa_config": "KaSA",
        "layer_replication": "replicated layers",
        "lora_bias": "LoRA with a bias",
        "modules_to_save": "whole modules saved beside it",
        "monteclora_config": "MonteCLoRA",
        "target_parameters": "LoRA on bare parameters (experts)",
        "trainable_token_indices": "trained tokens",
        "use_bdlora": "block-diagonal LoRA",
        "use_dora": "DoRA",
        "use_qalora": "QALoRA",
        "velora_config": "VeLoRA",
    }
)
# Initialisations that leave the base model's weights as they are; with others (PiSSA, OLoRA, CorDA, LoftQ) the adapter
# belongs to a base model that was changed when training began. As vLLM 0.32 has it.
_PLAIN_STARTS = frozenset({"eva", "gaussian", "lora_ga", "mica", "orthogonal"})
# Keys that say how an adapter was trained or where it comes from, and change nothing in an answer.
_INERT = frozenset(
    {
        *("auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out", "inference_mode"),
        *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version"),
        *("qalora_group_size", "revision", "runtime_config", "task_type"),
    }
)

_LONGEST_PATTERN = 1000
_NAME_LENGTH = 64  # of a module, in characters
_MOST_CHOICES = 3_000_000  # for one name
_ESCAPED_OR_CLASS = re.compile(r"\\[^0-9]|\[\^?\]?(?:\\.|[^\]\\])*\]")
_CHOICE = re.compile(r"[*+{]|(?<!\()\?")

Pattern = str | list[str] | None
Stamp = tuple[int, ...]


def _empty_if_none(value: Any) -> Any:
    return {} if value is None else value


class AdapterConfig(BaseModel):
    """What decides an adapter's effect in peft's ``adapter_config.json``; names and meaning are peft's.

    Attributes:
        r: Rank of modules that ``rank_pattern`` does not name.
        lora_alpha: The scale is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: Literal["LORA"]
    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, PositiveInt], BeforeValidator(_empty_if_none)] = {}
    alpha_pattern: Annotated[dict[str, FiniteFloat], BeforeValidator(_empty_if_none)] = {}
    bias: str | None = "none"
    init_lora_weights: bool | str | None = True
    target_modules: str | list[str]
    exclude_modules: Pattern = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Pattern = None
    base_model_name_or_path: str | None = None


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as read.

    Attributes:
        folder: Where it lies.
        config: Its configuration, checked.
        weights: Content of its safetensors file.
        sha256: Of both files; a folder may be written anew, and two may hold the same.
    """

    folder: Path
    config: AdapterConfig
    weights: bytes
    sha256: str


def read_adapter(folder: Path) -> AdapterFiles:
    """Read a folder that peft's ``save_pretrained`` wrote; only this machine is looked at, and no pickle is opened.

    Raises:
        StorageError: A file is missing, cannot be read or holds what cannot be.
        NeedsNotMetError: It is another kind of adapter; the text names the kind.
    """
    check_files(folder)
    try:
        weights, text = (folder / WEIGHTS_FILE).read_bytes(), (folder / CONFIG_FILE).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read adapter {folder}: {error.strerror}; fit the method again") from error
    digest = hashlib.sha256(len(text).to_bytes(8, "big") + text + weights)
    return AdapterFiles(folder, read_config(folder), weights, digest.hexdigest())


def check_files(folder: Path) -> None:
    """See that both files of an adapter are there.

    Raises:
        StorageError: One is missing, or the weights are a pickle.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file() and (folder / _PICKLE_FILE).is_file():
        raise StorageError(
            f"adapter {folder} is saved as {_PICKLE_FILE}, a pickle, which can run code when it is read: save it again "
            f"as {WEIGHTS_FILE} (peft: save_pretrained(..., safe_serialization=True))"
        )
    for needed in (folder / CONFIG_FILE, path):
        if not needed.is_file():
            state = "is missing" if not folder.is_dir() else f"has no {needed.name}"
            raise StorageError(
                f"adapter {folder} {state}: give the folder that peft saved it in, or fit the method again"
            )


def read_config(folder: Path) -> AdapterConfig:
    """Read an adapter's configuration and refuse what is not plain LoRA.

    Raises:
        StorageError: It is missing or not as peft writes it.
        NeedsNotMetError: It is another kind of adapter; the text names the kind.
    """
    path = folder / CONFIG_FILE
    found = read_json(path)
    if not isinstance(found, dict):
        raise StorageError(f"{path} does not describe an adapter: give a folder that peft saved")
    kind = found.get("peft_type")
    if kind != "LORA":
        raise NeedsNotMetError(f"adapter {folder} is of peft's type {kind!r}: only LORA is served for single requests")
    try:
        config = validate(AdapterConfig, found, str(path))
    except ConfigurationError as error:
        raise StorageError(f"{error}; save the adapter again with peft") from error
    _check_patterns(path, config)
    if others := _other_kinds(config):
        raise NeedsNotMetError(
            f"adapter {folder} is more than plain LoRA: {', '.join(others)}; plain LoRA on linear layers is what can "
            "be served for single requests, so train it without"
        )
    return config


def check_patterns(folder: Path) -> None:
    """Refuse an adapter of any kind of peft's whose patterns of module names may take too long.

    Raises:
        StorageError: Names the pattern, or what is wrong with the configuration.
    """
    path = folder / CONFIG_FILE
    found = read_json(path)
    if not isinstance(found, dict):
        raise StorageError(f"{path} does not describe an adapter: give a folder that peft saved")
    values: dict[str, Any] = {key: found.get(key) for key in ("target_modules", "exclude_modules", "layers_pattern")}
    values |= {key: found.get(key) or {} for key in ("rank_pattern", "alpha_pattern")}
    _check_patterns(path, AdapterConfig.model_construct(**values))


def _check_patterns(path: Path, config: AdapterConfig) -> None:
    for key, patterns in _patterns(config):
        for pattern in patterns:
            if reason := _pattern_problem(str(pattern)):
                raise StorageError(f"{path}: {key} {str(pattern)[:80]!r} {reason}: name the modules in a list")


def file_stamp(folder: Path) -> Stamp | None:
    """What changes when an adapter's files are written again: sizes, times and places of both.

    Returns:
        None where that cannot be told, because they were written just now; or are gone.
    """
    try:
        found = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError:
        return None
    newest = max(max(one.st_mtime_ns, one.st_ctime_ns) for one in found)
    if newest > time.time_ns() - SETTLED_SECONDS * 1e9:
        return None
    return tuple(
        number for one in found for number in (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
    )


def _patterns(config: AdapterConfig) -> Iterator[tuple[str, list[str]]]:
    """Yield what peft reads as regular expressions: a list of modules is none."""
    for key in ("target_modules", "exclude_modules"):
        if isinstance(value := getattr(config, key), str):
            yield key, [value]
    layers = config.layers_pattern or []
    yield "layers_pattern", [layers] if isinstance(layers, str) else layers
    yield "rank_pattern", list(config.rank_pattern)
    yield "alpha_pattern", list(config.alpha_pattern)


def _pattern_problem(pattern: str) -> str:
    """Say why a pattern is not run; empty where it is. A backtracking search multiplies the choices that it has."""
    if len(pattern) > _LONGEST_PATTERN:
        return f"is longer than {_LONGEST_PATTERN} characters"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression ({error})"
    plain = _ESCAPED_OR_CLASS.sub("x", pattern)
    choices = 1
    for part in _CHOICE.findall(plain):
        choices *= _NAME_LENGTH if part in "*+{" else 2
    inner = plain
    while group := re.search(r"\(([^()]*)\)", inner):
        choices *= 1 + group[1].count("|")
        inner = inner[: group.start()] + "x" + inner[group.end() :]
    if re.search(r"\)[*+{]", plain) or "\\" in plain or choices > _MOST_CHOICES:
        return "is a regular expression that may take too long"
    return ""


def _other_kinds(config: AdapterConfig) -> list[str]:
    """Name what makes an adapter more than plain LoRA."""
    asked = {key: value for key, value in (config.model_extra or {}).items() if value}
    found = [f"{words} ({key})" for key, words in _OTHER_KINDS.items() if key in asked]
    if config.bias not in {None, "none"}:
        found.append(f"trained biases (bias={config.bias!r})")
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        found.append(f"a base model changed by init_lora_weights={start!r}")
    return found + [
        f"unknown here ({key}={asked[key]!r})" for key in sorted(asked.keys() - _OTHER_KINDS.keys() - _INERT)
    ]
