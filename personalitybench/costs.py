"""What a fit costs: what it took, kept beside the artifact and shown on boards, and what it would take, for a plan."""

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

    seconds: float | None = Field(default=None, ge=0)
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
        bytes: Size of what is left on disk, besides the answers.
        bytes_per_neuron: The same for each neuron of the model's gated MLPs, all layers together: a method does not
            know how many there are before it runs.
    """

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    read_tokens: int = 0
    trained_tokens: int = 0
    bytes: int = 0
    bytes_per_neuron: int = 0
