"""Files of a model's folder, checked before anything is loaded: pointers, truncated weights, pickles, broken JSON.

Whoever resolves a model's name for loading calls :func:`check_model_files`; a dry run, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalitybench.backends.adapter_files import check_patterns
from personalitybench.errors import ConfigurationError, StorageError, UnreadableModelError
from personalitybench.files import read_json

_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("tekken.json", "*.tiktoken", "sentencepiece*.model"),
)
_DTYPES = re.compile(r"(auto|half|float|double|bfloat16|float\d+(_\w+)?)")
_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}


def check_model_files(folder: Path, args: Mapping[str, Any]) -> None:
    """Refuse a folder that no library could load, or only by running a pickle.

    Args:
        folder: Local folder of a model.
        args: Arguments that it is to be loaded with.

    Raises:
        UnreadableModelError: Names the file, and what to do.
    """
    check_dtype(args)
    _check_folder(folder)
    config = folder / "config.json"
    if config.is_file():
        _read_object(config)
    names = {path.name for path in folder.iterdir()}
    elsewhere = args.get("tokenizer") or args.get("gguf_file")
    if not elsewhere and not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise UnreadableModelError(
            f"model folder {folder} has no tokenizer (such as tokenizer.json): copy its files there, or name it with "
            "the argument 'tokenizer'"
        )
    if not any(name.endswith((".safetensors", ".gguf")) for name in names):
        raise UnreadableModelError(
            f"model folder {folder} has no weights: model.safetensors is missing, so copy or download it"
        )
    for key in ("peft", "delta", "tokenizer"):
        if isinstance(value := args.get(key), str) and value and Path(value).is_dir():
            _check_folder(Path(value))
    if isinstance(adapter := args.get("peft"), str) and (Path(adapter) / "adapter_config.json").is_file():
        try:
            check_patterns(Path(adapter))
        except StorageError as error:
            raise UnreadableModelError(str(error)) from error


def check_dtype(args: Mapping[str, Any]) -> None:
    """Refuse a ``dtype`` that torch does not have.

    Raises:
        ConfigurationError: Names the one that was meant, where it can be told.
    """
    value = args.get("dtype")
    if not isinstance(value, str) or _DTYPES.fullmatch(value):
        return
    short = value.lower().removeprefix("torch.")
    meant = _ALIASES.get(short, short if _DTYPES.fullmatch(short) else "bfloat16, float16 or float32")
    raise ConfigurationError(f"dtype {value!r} is no type of torch: write {meant}")


def _check_folder(folder: Path) -> None:
    """Check weights and JSON files of a folder."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" and path.is_file():
            _check_safetensors(path)
        elif path.suffix == ".json" and path.is_file():
            _read_json(path)
    for pickled, safe in (("pytorch_model*.bin", "model*.safetensors"), ("adapter_model.bin", "adapter_model.safet*")):
        if (found := sorted(folder.glob(pickled))) and not any(folder.glob(safe)) and not any(folder.glob("*.gguf")):
            raise UnreadableModelError(
                f"{found[0]} is a pickle, which can run code when it is read, so it is never loaded: save the weights "
                "as safetensors (save_pretrained does)"
            )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_object(index).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UnreadableModelError(f"{index} names {missing[0]}, which is missing: copy or download it")


def _check_safetensors(path: Path) -> None:
    """Compare the header of a safetensors file with the file's length; the weights are not read."""
    whole: int | None = None
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(len(_POINTER))
            length = int.from_bytes(start[:8], "little")
            if start == _POINTER:
                raise UnreadableModelError(
                    f"{path} is a pointer of git-lfs and holds no weights: run 'git lfs pull' in {path.parent}"
                )
            stream.seek(8)
            header: Any = json.loads(stream.read(length)) if 2 <= length <= min(size - 8, _LONGEST_HEADER) else None
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except OSError as error:
        raise UnreadableModelError(f"cannot read {path} ({error.strerror}): restore it") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        whole = None
    if whole is None:
        raise UnreadableModelError(f"{path} is truncated or is no safetensors file: copy or download it again")
    if whole != size:
        raise UnreadableModelError(
            f"{path} is {'truncated' if size < whole else 'damaged'}: it has {size:,} bytes, its header says "
            f"{whole:,}; copy or download it again"
        )


def _read_json(path: Path) -> Any:
    try:
        return read_json(path, finite=False)
    except StorageError as error:
        raise UnreadableModelError(str(error)) from error


def _read_object(path: Path) -> dict[str, Any]:
    value = _read_json(path)
    if not isinstance(value, dict):
        raise UnreadableModelError(f"{path} is not a JSON object: restore it")
    return value
