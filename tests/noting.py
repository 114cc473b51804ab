"""A method for tests of the store: its fit writes a few files, and nothing of what it cost."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from personalitybench.artifacts.store import Fit
from personalitybench.methods import (
    Artifact,
    FitContext,
    Induction,
    MethodContext,
    MethodSettings,
    Need,
    create_method,
    methods,
)
from personalitybench.prompts import load_wording
from personalitybench.questions import Question, shared_source
from personalitybench.traits import Target

TAKES = 0.05
"""Seconds of a fit, at least."""


class NotingSettings(MethodSettings):
    preset: str = "short"
    size: int = 10
    fails: bool = False
    loud: bool = False
    used_after_fit: ClassVar[frozenset[str]] = frozenset({"loud", "fails"})

    def __init__(self, **values: Any) -> None:
        super().__init__(**({"size": 1000} if values.get("preset") == "long" else {}) | values)


@methods.register("noting")
class Noting:
    """Notes something, which is its artifact."""

    summary: ClassVar[str] = "for tests"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Need]] = frozenset()
    has_strength: ClassVar[bool] = True
    Settings: ClassVar[type[MethodSettings]] = NotingSettings
    notes: ClassVar[str] = "a"

    def __init__(self, settings: NotingSettings, context: MethodContext) -> None:
        self.settings = settings
        self.context = context

    def fit(self, context: FitContext) -> Artifact | None:
        time.sleep(TAKES)
        context.work.mkdir(exist_ok=True, parents=True)
        (context.work / "draft").write_text("x" * 5000)
        if self.settings.fails:
            raise KeyboardInterrupt
        context.folder.mkdir(exist_ok=True)
        (context.folder / "notes.json").write_text(f'"{self.notes * self.settings.size}"')
        return Artifact.open(context.folder)

    def describe_fit(self, artifact: Artifact) -> list[dict[str, Any]]:
        if (artifact.folder / "unreadable").exists():
            raise ValueError("<b>cannot")
        return [{"target": "openness:high", "notes": self.settings.size}]

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        return Induction("noting", target, strength, self.context.wording.plain)


def noting(model: str = "maker/model", seed: int = 0, **settings: Any) -> Fit:
    """A fit of it, made or not."""
    context = MethodContext(load_wording("project"), shared_source("sample"), seed)
    record = {"name": model, "revision": "0123456789abcdef"}
    return Fit("noting", create_method("noting", settings, context), record, "hf", {"dtype": "float32"})
