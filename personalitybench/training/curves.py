"""The curve of a training: the loss of every step, and the held-out loss before, between and after the epochs.

``adapters.py`` makes it, ``curve.json`` beside an adapter keeps it, tables and plots read it. No torch here.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personalitybench.errors import StorageError
from personalitybench.files import read_json

CURVE = "curve.json"


class StepLoss(BaseModel):
    """One optimiser step.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss of an answer's token in the step's batch, before the step; nats.
        learning_rate: That of the step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=1)
    loss: float
    learning_rate: float


class HeldOutLoss(BaseModel):
    """The loss on examples that are never trained on.

    Attributes:
        step: After how many steps; 0 is before training, where an adapter changes nothing.
        loss: Mean loss of an answer's token; nats.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0)
    loss: float


class Curve(BaseModel):
    """How the training of one target went. Equal trainings have equal curves: how long it took stands elsewhere.

    Attributes:
        target: ``extraversion:high``.
        examples: Examples that were trained on, each once in an epoch.
        held_out_examples: Examples of the held-out loss.
        parameters: Parameters that were trained.
        trained_tokens: Tokens of prompts and answers that the steps read, each time that they were read.
        steps: Every step, in order.
        held_out: Before training, then after each epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str
    examples: int
    held_out_examples: int
    parameters: int
    trained_tokens: int
    steps: tuple[StepLoss, ...]
    held_out: tuple[HeldOutLoss, ...] = Field(min_length=1)

    @property
    def loss_before(self) -> float:
        """Held-out loss before training: that of the model itself."""
        return self.held_out[0].loss

    @property
    def loss_after(self) -> float:
        """Held-out loss after the last epoch."""
        return self.held_out[-1].loss

    @property
    def improved(self) -> bool:
        """Whether training lowered the held-out loss."""
        return self.loss_after < self.loss_before

    @classmethod
    def read(cls, adapter: Path) -> Curve:
        """Read the curve of an adapter.

        Args:
            adapter: The adapter's folder.

        Raises:
            StorageError: It is missing, or is no curve.
        """
        path = adapter / CURVE
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise StorageError(f"{path} is no curve of a training ({place}: {first['msg']}): fit again") from error
