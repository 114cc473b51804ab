"""What a client may ask of every worker, by name, through vLLM's ``collective_rpc``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from personalitybench.activations.statistics_files import StatisticsSource
from personalitybench.errors import NeedsNotMetError

CONTROL = "_personalitybench"
"""Attribute of a model that the plug-in loaded."""


class WorkerMethods:
    """Mixed into vLLM's worker class."""

    def personalitybench_report(self) -> dict[str, Any]:
        """Tell what was edited so far.

        Returns:
            ``layers`` and ``neurons`` of the model; ``edited_tokens``: positions of requests that were edited, each
            once; ``scheduled``: edits that were ordered, those computed again included; ``applied``: edits that each
            layer's op carried out, one number a layer.
        """
        control = self._personalitybench_control()
        state = control.state
        return {
            "layers": state.layers,
            "neurons": state.all_neurons,
            "edited_tokens": control.router.edited_tokens,
            "scheduled": state.scheduled,
            "applied": [int(count) for count in state.applied.tolist()],
        }

    def personalitybench_clear_statistics(self) -> None:
        """Begin to count at zero."""
        self._personalitybench_control().state.clear_statistics()

    def personalitybench_save_statistics(self, folder: str, source: str, questions: list[int]) -> str:
        """Save what this device counted.

        Args:
            folder: Every device writes a folder of its own in it.
            source: JSON of the :class:`StatisticsSource`.
            questions: Questions in each shard.

        Returns:
            The folder.
        """
        control = self._personalitybench_control()
        own = Path(folder) / f"{control.state.first_neuron:06d}"
        control.state.statistics_of(StatisticsSource.model_validate_json(source), questions).save(own)
        return str(own)

    def _personalitybench_control(self) -> Any:
        control = getattr(self.model_runner.get_model(), CONTROL, None)  # type: ignore[attr-defined]  # a mixin
        if control is None:
            raise NeedsNotMetError("this model cannot be steered: load it with load_format=personalitybench")
        return control
