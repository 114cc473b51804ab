"""LoRA adapters on disk as peft saves them: read, checked against a model, and copied for backends that take a folder.

Only what every backend serves alike is taken: low-rank products beside the projections of attention and MLP, one rank
and one scale for all. No library that runs models is imported.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError, StorageError
from personalitybench.files import CACHE_VARIABLE, cache_folder, content_hash, read_json, sha256_file, write_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "target_parameters",
    "trainable_token_indices",
)
"""Fields of peft's configuration that make more of an adapter than one low-rank product for each projection."""
_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Starts that only set the first weights; others (PiSSA, OLoRA, ...) alter the model that the adapter is put on."""
_TENSOR = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight$")


@dataclass(frozen=True)
class AdapterFiles:
    """One adapter on disk.

    Attributes:
        folder: Where it lies.
        sha256: Of its two files, their names, and nothing else.
        weights_sha256: Of the weights alone.
        config: ``adapter_config.json``.
        shapes: Shape of each tensor by its name.
    """

    folder: Path
    sha256: str
    weights_sha256: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, folder: Path) -> AdapterFiles:
        """Read and check an adapter, once as long as its files are not written again.

        Raises:
            StorageError: It is missing or damaged.
            NeedsNotMetError: It is no LoRA adapter, or of a kind that not every backend serves.
        """
        found = []
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            try:
                about = (folder / name).stat()
            except OSError:
                raise _missing(folder, name) from None
            found.append((about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
        return _open(folder, tuple(found))

    @property
    def rank(self) -> int:
        """Rank of its products."""
        return int(self.config["r"])

    @property
    def alpha(self) -> float:
        """``lora_alpha``: its scale is that divided by the rank, or by the root of the rank (``use_rslora``)."""
        return float(self.config["lora_alpha"])

    @property
    def modules(self) -> frozenset[str]:
        """Last names of the projections that it changes, such as ``q_proj``."""
        return frozenset(_place(self.folder, name)[1] for name in self.shapes)

    def check_model(self, text_config: Any) -> None:
        """Refuse a model that the adapter was not made for; backends may cut or pad what does not fit in silence.

        Args:
            text_config: transformers' configuration of the model, or of its text part.

        Raises:
            ModelError: It has other layers or other widths (names both).
            NeedsNotMetError: The adapter changes what is no projection of attention or MLP.
        """
        sizes = _sizes(text_config)
        for name, shape in self.shapes.items():
            layer, module, side = _place(self.folder, name)
            if module not in sizes:
                raise NeedsNotMetError(
                    f"adapter {self.folder} changes {module!r}, which is not served: fit it on projections of "
                    f"attention and MLP ({', '.join(sizes)})"
                )
            read, written = sizes[module]
            expected = (self.rank, read) if side == "A" else (written, self.rank)
            if layer >= text_config.num_hidden_layers or shape != expected:
                raise ModelError(
                    f"adapter {self.folder} was made for another model: {name} is {list(shape)}, this model has "
                    f"{text_config.num_hidden_layers} layers and needs {list(expected)}; fit it for this model"
                )

    def scaled(self, strength: float) -> Path:
        """Give a folder of the cache that holds this adapter with its scale multiplied by a strength.

        Made once for each content and strength, whole or not at all, and shared by all processes. It is a copy: a
        backend may read it long after it was asked for, when the adapter's own folder was written anew.

        Args:
            strength: Finite and not 0, for which there is no adapter.

        Raises:
            StorageError: It cannot be written, or was altered.
        """
        if not math.isfinite(strength) or strength == 0:
            raise ConfigurationError(f"an adapter cannot be scaled by {strength}: its strength is finite and not 0")
        folder = cache_folder("adapters") / f"{self.sha256}-{float(strength)!r}"
        try:
            if not folder.is_dir():
                self._write(folder, strength)
        except OSError as error:
            raise StorageError(
                f"cannot write {folder} ({error.strerror or error}): make room, or name another cache in "
                f"{CACHE_VARIABLE}"
            ) from error
        expected = self._config(strength)
        weights = folder / WEIGHTS_FILE
        if not weights.is_file() or sha256_file(weights) != self.weights_sha256:
            raise StorageError(f"{weights} was altered: delete {folder}, it will be made again")
        if read_json(folder / CONFIG_FILE) != expected:
            raise StorageError(f"{folder / CONFIG_FILE} was altered: delete {folder}, it will be made again")
        return folder

    def _config(self, strength: float) -> dict[str, Any]:
        return {**self.config, "lora_alpha": self.alpha * strength}

    def _write(self, folder: Path, strength: float) -> None:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            if strength == 1:
                shutil.copyfile(self.folder / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
                if sha256_file(temporary / WEIGHTS_FILE) != self.weights_sha256:
                    raise StorageError(f"adapter {self.folder} changed while it was read: ask again once it is written")
            else:
                # All strengths share the bytes of the copy in the cache, never those of a folder that may be rewritten.
                whole = self.scaled(1.0) / WEIGHTS_FILE
                try:
                    (temporary / WEIGHTS_FILE).hardlink_to(whole)
                except OSError:  # a file system without links
                    shutil.copyfile(whole, temporary / WEIGHTS_FILE)
            write_json(temporary / CONFIG_FILE, self._config(strength))
            temporary.chmod(0o755)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@functools.lru_cache(maxsize=256)
def _open(folder: Path, _written: tuple[tuple[int, ...], ...]) -> AdapterFiles:
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict):
        raise StorageError(f"{folder / CONFIG_FILE} is not an object of JSON: delete {folder} or restore it")
    _check_config(folder, config)
    weights = folder / WEIGHTS_FILE
    try:
        with safe_open(weights, framework="numpy") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{weights} is truncated or was altered ({error}): restore it, or fit it again") from error
    if not shapes:
        raise StorageError(f"{weights} holds no tensor: fit the adapter again")
    for name in shapes:
        _place(folder, name)
    sums = {CONFIG_FILE: sha256_file(folder / CONFIG_FILE), WEIGHTS_FILE: sha256_file(weights)}
    return AdapterFiles(folder, content_hash(sums), sums[WEIGHTS_FILE], config, shapes)


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no plain LoRA adapter."""
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise NeedsNotMetError(f"adapter {folder} is of peft type {kind}: only LORA is served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise StorageError(f"{folder / CONFIG_FILE} has r {rank!r} and lora_alpha {alpha!r}: restore it, or fit again")
    refused = [name for name in _REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        refused.append("init_lora_weights")
    if refused:
        told = ", ".join(f"{name}={config[name]!r}" for name in refused)
        raise NeedsNotMetError(
            f"adapter {folder} is not plain LoRA ({told}), which not every backend serves: fit it without"
        )


def _missing(folder: Path, name: str) -> StorageError:
    if name == WEIGHTS_FILE and (folder / "adapter_model.bin").exists():
        return StorageError(
            f"adapter {folder} has its weights in adapter_model.bin, which may run code when it is read: save it with "
            "peft's safe_serialization=True"
        )
    return StorageError(f"adapter {folder} has no {name}: name a folder that peft saved, or fit the method again")


def _place(folder: Path, tensor: str) -> tuple[int, str, str]:
    """Layer, projection, and A or B of a tensor's name."""
    match = _TENSOR.search(tensor)
    if match is None:
        raise NeedsNotMetError(
            f"adapter {folder} holds {tensor!r}, which is not served: fit it on projections of attention and MLP"
        )
    return int(match[1]), match[2], match[3]


def _sizes(text_config: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each projection that an adapter may change, by its name in transformers."""
    hidden, neurons = int(text_config.hidden_size), int(text_config.intermediate_size)
    heads = int(text_config.num_attention_heads)
    keys = int(getattr(text_config, "num_key_value_heads", None) or heads)
    size = int(getattr(text_config, "head_dim", None) or hidden // heads)
    return {
        "q_proj": (hidden, heads * size),
        "k_proj": (hidden, keys * size),
        "v_proj": (hidden, keys * size),
        "qkv_proj": (hidden, (heads + 2 * keys) * size),
        "o_proj": (heads * size, hidden),
        "gate_proj": (hidden, neurons),
        "up_proj": (hidden, neurons),
        "gate_up_proj": (hidden, 2 * neurons),
        "down_proj": (neurons, hidden),
    }
