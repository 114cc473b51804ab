"""Where a training stands, in one file that is written whole or not at all: a kill at any moment leaves the last one.

::

    <folder>/checkpoint.safetensors   adapter weights and AdamW's moments; what was measured, in the file's header
    <folder>/finished.safetensors     the trained adapter by peft's names; the same header
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from personalitybench.errors import StorageError
from personalitybench.files import write_atomically
from personalitybench.training.curves import HeldOutLoss, StepLoss

_PROGRESS = "progress"


class Progress(BaseModel):
    """What a training has come to.

    Attributes:
        identity: Hash of all that the training depends on; a checkpoint of another is not gone on from.
        steps: Steps that were made.
        held_out: Held-out losses that were measured.
        trained_tokens: Tokens that the steps read.
        parameters: Parameters that are trained.
        seconds: Wall-clock seconds, held-out losses included.
    """

    model_config = ConfigDict(extra="forbid")

    identity: str
    steps: list[StepLoss] = []
    held_out: list[HeldOutLoss] = []
    trained_tokens: int = 0
    parameters: int = 0
    seconds: float = 0.0


class Checkpoints:
    """The files of one target's training.

    Args:
        folder: Where they are.
        identity: Hash of all that the training depends on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity

    def unfinished(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The last checkpoint of this training, or None.

        Raises:
            StorageError: The file was altered.
        """
        return self._read(self._checkpoint)

    def finished(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The end of this training, or None.

        Raises:
            StorageError: The file was altered.
        """
        return self._read(self._finished)

    def keep(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint in place of the last one.

        Raises:
            StorageError: It cannot be written; the last one is kept.
        """
        _write(self._checkpoint, progress, tensors)

    def finish(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Write the end of the training.

        Raises:
            StorageError: It cannot be written; the last checkpoint is kept.
        """
        _write(self._finished, progress, tensors)
        self._checkpoint.unlink(missing_ok=True)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def _finished(self) -> Path:
        return self.folder / "finished.safetensors"

    def _read(self, path: Path) -> tuple[Progress, dict[str, Tensor]] | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as stream:
                progress = Progress.model_validate_json((stream.metadata() or {}).get(_PROGRESS, ""))
                if progress.identity != self.identity:
                    return None
                return progress, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, ValidationError, OSError) as error:
            raise StorageError(
                f"{path} is not what a training left ({error}): delete it, and the target is trained again"
            ) from error


def _write(path: Path, progress: Progress, tensors: dict[str, Tensor]) -> None:
    about: dict[str, Any] = progress.model_dump(mode="json")
    metadata = {_PROGRESS: json.dumps(about, allow_nan=False)}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(whole, metadata))
