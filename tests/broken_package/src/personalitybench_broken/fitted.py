"""Methods that fit something, or say that they do, with one defect each."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from personalitybench.activations.interventions import Intervention, Operation
from personalitybench.errors import ConfigurationError
from personalitybench.files import read_json, write_json
from personalitybench.methods import Artifact, FitContext, Induction, Need
from personalitybench.questions import Question
from personalitybench.traits import TARGETS, Target
from personalitybench_broken import Sound


def edits(model: Path, value: float) -> Intervention:
    """Edits of the first neurons of a model's first layer; its shape stands in its configuration."""
    configuration = read_json(model / "config.json")
    shape = (configuration["num_hidden_layers"], configuration["intermediate_size"])
    layer, index = np.zeros(8, np.int32), np.arange(8, dtype=np.int32)
    return Intervention(shape, layer, index, np.full(8, Operation.ADD, np.uint8), np.full(8, value, np.float32))


class Push(Sound):
    """Raises some neurons; nothing is wrong with this one."""

    name: ClassVar[str] = "push"
    needs: ClassVar[frozenset[Need]] = frozenset({"intervention"})
    has_strength: ClassVar[bool] = True
    value: ClassVar[float] = 40.0

    def fit(self, context: FitContext) -> Artifact | None:
        """Write the same edits for all targets, in two steps."""
        self._write(context)
        return Artifact.open(context.folder)

    def _write(self, context: FitContext) -> None:
        intervention = edits(Path(context.model), self.value)
        for number, target in enumerate(TARGETS):
            context.report("writing", number, len(TARGETS))
            folder = context.folder / str(target).replace(":", "-")
            intervention.save(folder, about={"target": str(target)})

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Ask plainly, and edit."""
        artifact = self.context.artifact
        if artifact is None:
            raise ConfigurationError(f"method {self.name!r} was not fitted")
        folder = artifact.folder / str(target).replace(":", "-")
        own = 1.0 if strength is None else strength
        plain = super().induce(target, strength, question)
        return replace(plain, intervention=str(folder), intervention_strength=own)


class Greedy(Push):
    """Asks for an intervention that it does not declare."""

    name: ClassVar[str] = "greedy"
    needs: ClassVar[frozenset[Need]] = frozenset()


class Lost(Push):
    """Declares an intervention that it never asks for."""

    name: ClassVar[str] = "lost"
    has_strength: ClassVar[bool] = False

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Only prompt."""
        return Sound.induce(self, target, strength, question)


class Dated(Push):
    """Writes the time into its artifact."""

    name: ClassVar[str] = "dated"

    def _write(self, context: FitContext) -> None:
        super()._write(context)
        write_json(context.folder / "made.json", {"at": time.time_ns()})


class Unsteady(Push):
    """Takes for whole what an interrupted fit left."""

    name: ClassVar[str] = "unsteady"

    def _write(self, context: FitContext) -> None:
        if context.folder.is_dir():
            return
        super()._write(context)


class Messy(Push):
    """Writes a file into the folder that it was started in."""

    name: ClassVar[str] = "messy"

    def _write(self, context: FitContext) -> None:
        super()._write(context)
        Path("neurons.txt").write_text("8 of them")


class Altering(Push):
    """Leaves torch with another default dtype."""

    name: ClassVar[str] = "altering"

    def _write(self, context: FitContext) -> None:
        import torch

        torch.set_default_dtype(torch.float64)
        super()._write(context)


class Idle(Push):
    """Adds nothing to what it edits."""

    name: ClassVar[str] = "idle"
    value: ClassVar[float] = 0.0


class Sticky(Push):
    """Changes how all models of the process compute, and never takes it back."""

    name: ClassVar[str] = "sticky"

    def _write(self, context: FitContext) -> None:
        from torch.nn.modules.module import register_module_forward_hook

        super()._write(context)
        HOOKS.append(register_module_forward_hook(_turn_norms))


HOOKS: list[Any] = []
"""Of ``sticky``, so that tests can take them away."""


def _turn_norms(module: Any, _inputs: Any, output: Any) -> Any:
    return output.roll(1, -1) if type(module).__name__.endswith("RMSNorm") else output
