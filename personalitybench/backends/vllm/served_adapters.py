"""LoRA adapters for vLLM, which takes a folder: checked against a model, and copied with their scale multiplied.

Of what every backend takes, vLLM serves the low-rank products beside the projections of attention and MLP, with one
rank and one scale for all. vLLM itself is not imported.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from personalitybench.backends.adapter_files import CONFIG_FILE, WEIGHTS_FILE, check_files, read_config
from personalitybench.backends.projections import projection_widths
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError, StorageError
from personalitybench.files import CACHE_VARIABLE, cache_folder, content_hash, read_json, sha256_file, write_json
from personalitybench.temporaries import temporary_folder

_PATTERNS = ("rank_pattern", "alpha_pattern")
"""Fields of peft's configuration by which modules have ranks or scales of their own."""
_TENSOR = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight$")


@dataclass(frozen=True)
class ServedAdapter:
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
    def open(cls, folder: Path) -> ServedAdapter:
        """Read and check an adapter, once as long as its files are not written again.

        Raises:
            StorageError: It is missing or damaged.
            NeedsNotMetError: It is no LoRA adapter, or of a kind that not every backend serves.
        """
        check_files(folder)
        found = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
        return _open(folder, tuple((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found))

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
        sizes = projection_widths(text_config)
        for name, shape in sorted(self.shapes.items()):
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
        with temporary_folder(folder) as temporary:
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


@functools.lru_cache(maxsize=256)
def _open(folder: Path, _written: tuple[tuple[int, ...], ...]) -> ServedAdapter:
    checked = read_config(folder)
    if own := [name for name in _PATTERNS if getattr(checked, name)]:
        raise NeedsNotMetError(
            f"adapter {folder} has modules with a rank or scale of their own ({', '.join(own)}), which is not served "
            "in vLLM here: fit it without, or use the backend 'personalitybench-hf'"
        )
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
    return ServedAdapter(folder, content_hash(sums), sums[WEIGHTS_FILE], read_json(folder / CONFIG_FILE), shapes)


def _place(folder: Path, tensor: str) -> tuple[int, str, str]:
    """Layer, projection, and A or B of a tensor's name."""
    match = _TENSOR.search(tensor)
    if match is None:
        raise NeedsNotMetError(
            f"adapter {folder} holds {tensor!r}, which is not served: fit it on projections of attention and MLP"
        )
    return int(match[1]), match[2], match[3]
