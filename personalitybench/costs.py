"""What a fit costs: what it took, kept beside the artifact and shown on boards, and what it would take, for a plan.

The words for a cost are here, too, so that a page, a table and a terminal say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class FitCost(BaseModel):
    """What a fit took. Work that it shares with other fits is counted in each.

    Attributes:
        seconds: Wall-clock seconds over all sessions that ended other than by a kill; None until the fit is complete.
        generated_tokens: Tokens of the answers that the fit had the model write.
        trained_tokens: Tokens of prompts and answers that training steps read, each time that they were read.
        parameters: Parameters that were trained, of all targets together.
        neurons: Neurons that are edited, of all targets together.
        bytes: Size of the artifact.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    generated_tokens: int = Field(default=0, ge=0)
    trained_tokens: int = Field(default=0, ge=0)
    parameters: int = Field(default=0, ge=0)
    neurons: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class FitPlan:
    """What a fit would take at most, known before anything runs.

    Attributes:
        requests: Answers that the model would write.
        prompt_tokens: Tokens of their prompts.
        new_tokens: Tokens of the answers, if each is as long as it may be.
        read_tokens: Tokens of prompts and answers that are read again, to count activations.
        trained_tokens: Tokens that training steps read, over all epochs.
        bytes: Size of what is left on disk, besides the answers. Where this and the next are 0 it is not known.
        bytes_per_neuron: The same for each neuron of the model's gated MLPs, all layers together: a method does not
            know how many there are before it runs.
        bytes_per_width: The same for each input and each output of the projections that adapters stand beside, all
            layers together.
        projections: Which these are, by their names; empty for all of attention and MLP.
    """

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    read_tokens: int = 0
    trained_tokens: int = 0
    bytes: int = 0
    bytes_per_neuron: int = 0
    bytes_per_width: int = 0
    projections: tuple[str, ...] = ()


def cost_cells(cost: FitCost) -> dict[str, str]:
    """A cost as cells of a table, by the heads of their columns; only what is not zero."""
    counts = {
        "tokens written": cost.generated_tokens,
        "tokens trained on": cost.trained_tokens,
        "parameters trained": cost.parameters,
        "neurons": cost.neurons,
    }
    cells = {"time": describe_seconds(cost.seconds)} if cost.seconds else {}
    cells |= {name: f"{count:,}" for name, count in counts.items() if count}
    return cells | ({"size": describe_bytes(cost.bytes)} if cost.bytes else {})


def describe_cost(cost: FitCost) -> str:
    """A cost in a line: ``158 s, 25,000 tokens written, 24,321 neurons, 1.2 MB``; empty where all is zero."""
    bare = ("time", "size")  # they say their unit themselves
    return ", ".join(cell if name in bare else f"{cell} {name}" for name, cell in cost_cells(cost).items())


def describe_seconds(seconds: float) -> str:
    """A duration: ``4.2 s``, ``158 s``, ``27 min``, ``3 h 05 min``."""
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def describe_bytes(count: float) -> str:
    """A size in decimal units: ``312 B``, ``1.2 MB``, ``7.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
