"""How fast a model is, as somebody states it: what a dry run makes hours of. Never measured by us."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.errors import ConfigurationError
from personalitybench.validation import validate

COMMAND_LINE = "given on the command line"
FORMULA = "prompt tokens / prompt + new tokens / new + trained tokens / trained"


class Throughput(BaseModel):
    """Tokens per second of one GPU.

    Attributes:
        prompt: Tokens that are read: prompts, and answers that are read again.
        new: Tokens that are written, of all answers of a batch together.
        trained: Tokens that training steps read; None: not stated, so training is not estimated.
        stated: Where these numbers come from, for whoever reads the estimate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: float = Field(gt=0)
    new: float = Field(gt=0)
    trained: float | None = Field(default=None, gt=0)
    stated: str = Field(min_length=1)

    def seconds(self, prompt: int, new: int, trained: int = 0) -> float | None:
        """Seconds for so many tokens; None where a speed that is needed was not stated."""
        if trained and self.trained is None:
            return None
        training = 0.0 if self.trained is None else trained / self.trained
        return prompt / self.prompt + new / self.new + training


def parse_throughput(text: str, stated: Throughput | None = None) -> Throughput:
    """Read ``prompt=20000,new=2500,trained=4000``.

    Args:
        text: What the user wrote.
        stated: What the suite states; its numbers stand where the text gives none.

    Raises:
        ConfigurationError: It cannot be read, or a number is missing.
    """
    where = "--throughput"
    given: dict[str, object] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigurationError(
                f"{where} {part!r}: write tokens per second as prompt=20000,new=2500 (and trained=4000 for training)"
            )
    own = {} if stated is None else stated.model_dump(exclude={"stated"})
    source = COMMAND_LINE
    if stated is not None and own.keys() - given.keys():
        source = f"{', '.join(sorted(given))} {COMMAND_LINE}; else: {stated.stated}"
    return validate(Throughput, {**own, **given, "stated": source}, where)
