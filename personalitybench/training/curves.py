"""Curves of training, as they lie beside what was trained: the loss of every step, and the loss on held-out answers.

::

    artifact/<target>/curve.json
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from personalitybench.errors import StorageError
from personalitybench.files import read_json

CURVE = "curve.json"


class Step(BaseModel):
    """An optimiser step.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss of an answer's token, in nats, over the step's examples.
        learning_rate: At which it was made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    loss: float
    learning_rate: float


class HeldOut(BaseModel):
    """The loss on examples that are not trained on.

    Attributes:
        step: After how many steps; 0 is before training.
        loss: Mean loss of an answer's token, in nats.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    loss: float


class Curve(BaseModel):
    """How the training of a target went.

    Attributes:
        target: The target.
        examples: Examples that were trained on.
        held_out_examples: Examples that were not.
        parameters: Parameters that were trained.
        trained_tokens: Tokens of prompts and answers that steps read, each time that they were read.
        steps: In order.
        held_out: In order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str
    examples: int
    held_out_examples: int
    parameters: int
    trained_tokens: int
    steps: list[Step]
    held_out: list[HeldOut]


def read_curves(folder: Path) -> list[Curve]:
    """The curves beneath a folder, in the order of their folders' names; none where nothing was trained.

    Raises:
        StorageError: A file holds no curve.
    """
    curves = []
    for path in sorted(folder.glob(f"*/{CURVE}")):
        try:
            curves.append(Curve.model_validate(read_json(path)))
        except ValidationError as error:
            raise StorageError(f"{path} is not a curve of training: fit again") from error
    return curves
