"""``few_shot``: answers that a person at the pole gave to other questions, put before the question."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

from pydantic import Field

from personalitybench.files import JsonLines
from personalitybench.methods.base import MethodSettings
from personalitybench.methods.fitting import MethodContext
from personalitybench.methods.induction import Induction
from personalitybench.methods.none import Unprompted
from personalitybench.questions import Question
from personalitybench.resources import bundled
from personalitybench.traits import Target


class FewShotSettings(MethodSettings):
    """Settings of ``few_shot``.

    Attributes:
        examples: How many examples are shown (1 to 4).
    """

    examples: int = Field(default=2, ge=1, le=4)


class FewShotPrompt(Unprompted):
    """Show example answers of the pole, written for this project on identification questions.

    Which examples are shown, and in which order, is drawn for each question by a seeded hash. The examples
    never answer an evaluation question.
    """

    summary: ClassVar[str] = "example answers of the pole before the question"
    Settings: ClassVar[type[MethodSettings]] = FewShotSettings

    def __init__(self, settings: FewShotSettings, context: MethodContext) -> None:
        super().__init__(settings, context)
        self.count = settings.examples

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        """Draw examples and put them into the template."""
        pool = list(_examples()[target])
        chosen = [
            pool.pop(self.context.draw("few_shot", len(pool), target, question.id, index))
            for index in range(min(self.count, len(pool)))
        ]
        shown = "\n\n".join(f"Question: {asked}\nAnswer: {answer}" for asked, answer in chosen)
        return Induction("few_shot", target, strength, self.context.wording.few_shot, shown)


@lru_cache(maxsize=1)
def _examples() -> dict[Target, list[tuple[str, str]]]:
    """Question and answer of every bundled example, by target."""
    found: dict[Target, list[tuple[str, str]]] = {}
    for row in JsonLines(bundled("tasks", "sample", "examples.jsonl")).read():
        found.setdefault(Target.parse(row["target"]), []).append((row["question"], row["answer"]))
    return found
