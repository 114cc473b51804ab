"""How long 180,000 identification questions take to load: parsed for the first time, and from the cache.

Run: ``python benchmarks/load_questions.py``. Prints seconds and their ratio. The questions are made up, of the size
and shape of the official ones (about 110 words, with facet, item, topic and keying).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRAITS = ("Agreeableness", "Conscientiousness", "Extraversion", "Neuroticism", "Openness")
EACH = 36_000

LOAD = """
import time
from personalitybench.questions import open_source
started = time.perf_counter()
table = open_source("official").questions("identify")
print(len(table), time.perf_counter() - started)
"""


def write_questions(folder: Path) -> None:
    """Write five files of 36,000 questions with the official layout."""
    words = [
        "You",
        "are",
        "planning",
        "a",
        "long",
        "weekend",
        "with",
        "two",
        "old",
        "friends",
        "who",
        "want",
        "quite",
        "different",
        "things",
        "from",
        "it",
        "and",
        "ask",
    ]
    for trait in TRAITS:
        path = folder / "search" / f"{trait}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            for number in range(EACH):
                text = " ".join([f"Situation {trait} {number}.", *(words * 9)[: 106 + number % 9], "What do you do?"])
                row = {"BFI": trait, "tag": "Trust", "facet": "Item.", "topic": "Travel", "sign": "+", "question": text}
                stream.write(json.dumps(row) + "\n")


def load(environment: dict[str, str]) -> float:
    """Load all questions in a process of its own; returns seconds without imports."""
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True, env=environment)
    count, seconds = done.stdout.split()
    if int(count) != EACH * len(TRAITS):
        raise SystemExit(f"{count} questions came")
    return float(seconds)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_questions(folder / "data")
        environment = os.environ | {
            "PERSONALITYBENCH_CACHE": str(folder / "cache"),
            "PERSONALITYBENCH_DATA": str(folder / "data"),
        }
        first = load(environment)
        again = sorted(load(environment) for _ in range(5))[2]
    print(f"parsed for the first time: {first:.2f} s")
    print(f"from the cache (median of 5): {again:.2f} s")
    print(f"ratio: {first / again:.1f}")


if __name__ == "__main__":
    main()
