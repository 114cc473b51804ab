"""Identity of a model by content: the files of its folder, and the files that its arguments name.

Runs, fits, judges and imports of lm-eval's results take a model's name and revision from here.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from personalitybench.errors import ModelError, StorageError, UnreadableModelError
from personalitybench.files import cache_folder, cached_sha256, content_hash, read_json
from personalitybench.hub import hub_commit

MANIFEST = "personalitybench-model.json"
"""Manifest of a model that this package converted: name, revision and hashes of the files."""

UNSTATED = "unstated"
"""Revision of weights that nobody recorded."""

_ADAPTERS = ("peft", "delta")
_HUB_FILES = {"peft": "adapter_config.json", "delta": "config.json", "tokenizer": "tokenizer_config.json"}
# Besides files: arguments that change weights, prompt or tokens, and stand in the revision with their values.
_DECIDING = {
    *_HUB_FILES,
    *("gguf_file", "subfolder", "quantization", "quantization_config", "load_in_4bit", "load_in_8bit"),
    *("rope_scaling", "rope_theta", "sliding_window", "num_hidden_layers", "hf_overrides", "load_format"),
    *("tokenizer_mode", "tokenizer_revision", "code_revision", "disable_sliding_window"),
    *("autogptq", "gptqmodel", "add_bos_token", "enable_thinking", "think_end_token", "chat_template_args"),
}
_DECIDING_PREFIX = "bnb_4bit_"
_OFF_COUNTS = {"enable_thinking", "add_bos_token"}  # without them the template or tokenizer decides
# Arguments whose values are never files that decide an answer. The model itself is identified apart.
_NO_FILES = {
    *("pretrained", "model", "revision", "device", "dtype", "backend", "base_url"),
    *("cache_dir", "download_dir", "offload_folder"),
}

_DOCUMENTS = {
    *(".md", ".rst", ".pdf", ".html", ".ipynb", ".log", ".lock"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".bmp", ".mp4"),
}
_DOCUMENT_NAMES = re.compile(
    r"(README|LICEN[CS]E|NOTICE|USE_POLICY|CITATION|AUTHORS|CHANGELOG)([._-].*)?", re.IGNORECASE
)
_TRAINING_FILES = re.compile(
    r"optimizer.*\.(pt|pth|bin)|scheduler\.(pt|bin)|scaler\.pt|rng_state.*\.pth|trainer_state\.json|training_args\.bin"
)
_TRAINING_FOLDERS = re.compile(r"checkpoint-\d+|global_step\d+|runs|logs|wandb|__pycache__")


@dataclass(frozen=True)
class ModelIdentity:
    """Name and revision of the weights that answered: part of a row's identity.

    Attributes:
        name: Name of the model.
        revision: Hub commit, hash of the files, or what else tells two versions apart.
    """

    name: str
    revision: str


@dataclass(frozen=True)
class LocalFiles:
    """Identities of the local files that a model's arguments name, by the path as the arguments have it.

    Attributes:
        models: Folders of weights.
        others: Adapters, tokenizers, templates and other files.
        are_complete: False where nobody recorded them.
    """

    models: Mapping[str, ModelIdentity] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    are_complete: bool = True


def identify_folder(folder: Path) -> ModelIdentity:
    """Identify the model in a local folder by a hash of all files that decide an answer; see :func:`file_hashes`.

    The manifest of this package is used instead if the folder lies in this package's cache and holds exactly the files
    that the manifest lists, with their hashes.

    Raises:
        ModelError: The folder holds no model, or something that is neither a file nor a folder.
    """
    hashes = file_hashes(folder)
    if (identity := _own_identity(folder, hashes)) is not None:
        return identity
    if "config.json" not in hashes and not any(name.endswith(".gguf") for name in hashes):
        raise ModelError(f"model folder {folder} has no config.json: it holds no transformers model")
    if (base := _adapted_folder(folder, hashes)) is not None:  # transformers loads the weights from there
        hashes = {**hashes, **{f"base/{name}": digest for name, digest in file_hashes(base).items()}}
    return ModelIdentity(folder.resolve().name, _digest(hashes))


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that decides an answer, by its path in a model's or an adapter's folder.

    These are all files, in subfolders, too: weights, configurations, tokenizer, chat templates, code. Left out are:

    - hidden files and folders (``.git``, ``.cache``), and the manifest of this package;
    - documents and images, by suffix (``.md``, ``.png``) or name (``README``, ``LICENSE``);
    - states of training: optimizer, scheduler, random numbers, ``training_args.bin``, ``trainer_state.json``, and the
      folders ``checkpoint-<number>``, ``global_step<number>``, ``runs``, ``logs``, ``wandb``, ``__pycache__``.

    A link to a file counts as the file. A link to a folder within the model counts by its target. Files are hashed
    once in a process.

    Raises:
        ModelError: There is a pipe, a device, a broken link, a link to a folder elsewhere, or an unreadable file.
    """
    return dict(_hashes(folder, folder.resolve()))


def model_record(
    backend: str,
    args: Mapping[str, Any],
    commit: str | None = None,
    adapter_commits: Mapping[str, str] | None = None,
    recorded: LocalFiles | None = None,
) -> dict[str, str]:
    """Name and revision of the model that lm-eval's model type loads with these arguments.

    The revision also covers each file or folder that an argument names (``peft``, ``delta``, ``tokenizer``, others),
    by content, and the arguments that change weights, prompt or tokens. The same for a run, a fit and an import of
    lm-eval's results.

    Args:
        backend: lm-eval model type.
        args: Its arguments.
        commit: Commit of a model on the hub.
        adapter_commits: Commits of adapters on the hub, by argument; None: ask the hub.
        recorded: Identities of local files as they were recorded when the model answered; None: read the files.

    Raises:
        ModelError: A folder or file that the arguments name cannot be read.
    """
    files = read_local_files(args) if recorded is None else recorded
    name = str(args.get("pretrained") or args.get("model") or backend)
    revision = commit or UNSTATED
    if "pretrained" in args and name in files.models:
        name, revision = files.models[name].name, files.models[name].revision
    elif recorded is not None:
        name = _without_folder(name)
    for key in sorted(args):
        if (part := _argument_identity(key, args, adapter_commits, files)) is not None:
            revision += f"+{key}={part}"
    for key in _ADAPTERS:
        if isinstance(value := args.get(key), str) and value:
            name += f"+{Path(value).resolve().name if value in files.others else _without_folder(value)}"
    return {"name": name, "revision": revision}


def read_local_files(args: Mapping[str, Any]) -> LocalFiles:
    """Identify the local files that a model's arguments name.

    Raises:
        ModelError: A folder or file cannot be read.
    """
    models: dict[str, ModelIdentity] = {}
    others: dict[str, str] = {}
    for key, value in args.items():
        if key == "pretrained" and isinstance(value, str) and _exists(value) and Path(value).is_dir():
            models[value] = identify_folder(Path(value))
        elif key not in _NO_FILES:
            others |= {path: _path_identity(Path(path)) for path in _paths(value)}
    return LocalFiles(models, others)


def changed_files(recorded: LocalFiles) -> list[str]:
    """Return the recorded paths that hold other content today; those that are gone or unreadable are left out."""
    found = []
    for path in (*recorded.models, *recorded.others):
        if not _exists(path):
            continue
        try:
            if path in recorded.models:
                same = identify_folder(Path(path)) == recorded.models[path]
            else:
                same = _path_identity(Path(path)) == recorded.others[path]
        except ModelError:
            continue
        if not same:
            found.append(path)
    return found


def is_local_path(text: str) -> bool:
    """Return True if a text can only be a path of a machine's own, no name on the hub."""
    return text.startswith(("/", "./", "../", "~")) or text in {".", ".."} or "\\" in text


def _without_folder(text: str) -> str:
    return Path(text).name or text if is_local_path(text) else text


def _argument_identity(
    key: str, args: Mapping[str, Any], adapter_commits: Mapping[str, str] | None, files: LocalFiles
) -> str | None:
    """Identity of an argument: a hash of the files that it names, else its value; None if it decides nothing here."""
    value = args[key]
    if key in _NO_FILES or value is None or value == "" or (value is False and key not in _OFF_COUNTS):
        return None
    if any(text in files.others for text in _texts(value)):
        return files.others[value] if isinstance(value, str) else content_hash(_without_paths(value, files.others))[:16]
    if isinstance(value, str) and is_local_path(value) and not files.are_complete:
        return UNSTATED
    if key not in _DECIDING and not key.startswith(_DECIDING_PREFIX):
        return None
    if key in _HUB_FILES and isinstance(value, str):
        return f"{value}@{_adapter_commit(key, value, args, adapter_commits)}"
    return str(value) if isinstance(value, str | int | float) else content_hash(value)[:16]


def _adapter_commit(key: str, value: str, args: Mapping[str, Any], known: Mapping[str, str] | None) -> str:
    if known is not None:
        return known.get(key) or UNSTATED
    if "pretrained" not in args or value.count("/") != 1:
        return UNSTATED
    revision = args.get("revision")
    return _hub_commit_once(value, None if revision is None else str(revision), _HUB_FILES[key]) or UNSTATED


@lru_cache(maxsize=256)
def _hub_commit_once(name: str, revision: str | None, file: str) -> str | None:
    return hub_commit(name, revision, file)


def _paths(value: Any) -> Iterator[str]:
    """Yield the texts within a value that are existing paths."""
    return filter(_exists, _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _without_paths(value: Any, contents: Mapping[str, str]) -> Any:
    """Replace the paths within a value by the identities of their contents."""
    if isinstance(value, Mapping):
        return {str(key): _without_paths(part, contents) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(part, contents) for part in value]
    return contents.get(value, value) if isinstance(value, str) else value


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # longer than a path can be
        return False


def _path_identity(path: Path) -> str:
    """Hash of a file or folder that an argument names."""
    if path.is_dir():
        return _digest(file_hashes(path))
    return f"sha256:{_file_hash(path)[:16]}"


def _digest(hashes: Mapping[str, str]) -> str:
    return f"sha256:{content_hash(dict(hashes))[:16]}"


def _hashes(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UnreadableModelError(f"cannot read the model folder {folder}: {error.strerror}") from error
    for path in entries:
        is_folder = path.is_dir()
        if _decides_nothing(path.name, is_folder=is_folder):
            continue
        name = path.relative_to(folder).as_posix()
        if is_folder and path.is_symlink():
            target = path.resolve()
            if not target.is_relative_to(root) or _is_left_out(target.relative_to(root)):
                raise UnreadableModelError(
                    f"{path} is a link to a folder that is no part of the model: copy the folder, or remove the link"
                )
            yield name, f"link:{target.relative_to(root).as_posix()}"
        elif is_folder:
            yield from ((f"{name}/{inner}", digest) for inner, digest in _hashes(path, root))
        else:
            yield name, _file_hash(path)


def _is_left_out(path: Path) -> bool:
    return any(_decides_nothing(part, is_folder=True) for part in path.parts)


def _decides_nothing(name: str, *, is_folder: bool) -> bool:
    if name.startswith(".") or name == MANIFEST:
        return True
    if is_folder:
        return _TRAINING_FOLDERS.fullmatch(name) is not None
    return (
        Path(name).suffix.lower() in _DOCUMENTS
        or _DOCUMENT_NAMES.fullmatch(name) is not None
        or _TRAINING_FILES.fullmatch(name) is not None
    )


def _file_hash(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise UnreadableModelError(
                f"{path} is no regular file (a pipe, socket or device): remove it from the model"
            )
        return cached_sha256(path)
    except OSError as error:
        raise UnreadableModelError(
            f"cannot read the model file {path} ({error.strerror}): restore it, or remove it"
        ) from error


def _own_identity(folder: Path, hashes: Mapping[str, str]) -> ModelIdentity | None:
    """Identity that our manifest states, if the folder is one of our cache and holds the files of the manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    try:
        if folder.resolve().parent != cache_folder("models").resolve():
            return None
        recorded = read_json(manifest)
        listed: dict[str, str] = recorded["files"]
        known = {name: digest for name, digest in listed.items() if not _decides_nothing(name, is_folder=False)}
        return ModelIdentity(str(recorded["name"]), str(recorded["revision"])) if known == dict(hashes) else None
    except (StorageError, KeyError, TypeError, AttributeError):
        return None


def _adapted_folder(folder: Path, hashes: Mapping[str, str]) -> Path | None:
    """Local folder of the model that the adapter in a folder adapts; None if there is none."""
    if "adapter_config.json" not in hashes:
        return None
    try:
        config = read_json(folder / "adapter_config.json")
    except StorageError as error:
        raise UnreadableModelError(str(error)) from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not _exists(base) or not Path(base).is_dir():
        return None
    return None if Path(base).resolve() == folder.resolve() else Path(base)
