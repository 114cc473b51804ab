"""What a method says about one question: plain data that travels with the request to whatever runs the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from personalitybench import prompts
from personalitybench.traits import Target

Need = Literal["adapter", "intervention"]


@dataclass(frozen=True)
class Induction:
    """A method bound to a target and a strength; JSON-serialisable and hashable.

    Attributes:
        method: Registered name of the method.
        target: What is to be induced.
        strength: The scalar that scales the effect, or None for methods that have none.
        template: What the user turn says; ``{question}``, ``{personality}`` and ``{examples}`` are filled in.
        description: What ``{personality}`` or ``{examples}`` stands for, if the template has it.
        adapter: Folder of a LoRA adapter as peft saves it, if the method needs one.
        adapter_strength: What the adapter's scale is multiplied by; None for the strength, or 1 where there is none.
        intervention: Folder of an activation artifact, if the method needs one.
        intervention_strength: What its additions are multiplied by; None for the strength.
        keep: Share of the intervention's additions that stay at each step, 1 for all.
        seed: Of that draw.
        first_token: Whether the last prompt token is steered too, and with it the first token of the answer.
    """

    method: str
    target: Target
    strength: float | None
    template: str
    description: str | None = None
    adapter: str | None = None
    adapter_strength: float | None = None
    intervention: str | None = None
    intervention_strength: float | None = None
    keep: float = 1.0
    seed: int = 0
    first_token: bool = False

    def render(self, question: str) -> str:
        """Write the user turn for a question."""
        about = self.description or ""
        return prompts.fill(self.template, question=question, personality=about, examples=about)

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data, the target written as text."""
        return {**asdict(self), "target": str(self.target)}

    @property
    def extra_args(self) -> dict[str, Any]:
        """What a backend must do besides reading the prompt; empty for a prompting method.

        ``adapter_strength``, ``keep``, ``seed`` and ``first_token`` are there only where they change something.
        """
        return self._adapter_args() | self._intervention_args()

    def _adapter_args(self) -> dict[str, Any]:
        if self.adapter is None:
            return {}
        own = self.strength if self.adapter_strength is None else self.adapter_strength
        scaled = {} if own is None or own == 1.0 else {"adapter_strength": own}
        return {"adapter": self.adapter, **scaled}

    def _intervention_args(self) -> dict[str, Any]:
        if self.intervention is None:
            return {}
        own = self.strength if self.intervention_strength is None else self.intervention_strength
        needed: dict[str, Any] = {"intervention": self.intervention, "strength": own}
        if self.keep != 1.0:
            needed["keep"] = self.keep
            needed |= {"seed": self.seed} if self.seed else {}
        return needed | ({"first_token": True} if self.first_token else {})
