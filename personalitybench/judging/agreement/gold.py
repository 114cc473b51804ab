"""The gold texts: hand-written answers of known pole to the bundled sample's questions.

The offline judge was trained on them, so how well it agrees with their poles says little about other texts.
"""

from __future__ import annotations

from collections.abc import Iterator

from personalitybench.files import JsonLines
from personalitybench.judging.agreement.table import ComparedAnswer
from personalitybench.questions import shared_source
from personalitybench.resources import bundled
from personalitybench.traits import TRAIT_NAMES

METHOD = "gold"


def gold_answers() -> Iterator[ComparedAnswer]:
    """Read them; the pole is what the writer was asked for: ``high``, ``low`` or ``neutral``."""
    questions = shared_source("sample").questions("evaluate")
    texts = dict(zip(questions["id"], questions["question"], strict=True))
    for trait in TRAIT_NAMES:
        for row in JsonLines(bundled("judges", "offline", "answers") / f"{trait}.jsonl").read():
            identity = row["question_id"]
            yield ComparedAnswer(identity, texts[identity], row["answer"], trait, row["pole"], METHOD)
