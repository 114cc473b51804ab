"""A board with everything that a board can have, computed from made-up ratings."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from personalitybench.costs import FitCost
from personalitybench.judging import Rating, Unrated, Verdict
from personalitybench.judging.attack_ratings import RatedAttack
from personalitybench.judging.attacks import ATTACKS, attack_answers
from personalitybench.leaderboard.build import Cell, build_board
from personalitybench.leaderboard.floors import build_floor
from personalitybench.leaderboard.mapped import with_mapped
from personalitybench.leaderboard.render import write_board
from personalitybench.leaderboard.schema import Floors, Leaderboard, Provenance
from personalitybench.leaderboard.sweeps import build_sweep
from personalitybench.traits import TARGETS
from tests.test_leaderboard import JUDGE, cell


def full_board() -> Leaderboard:
    """Rows of prompts, of a combination and of a tuned method with its sweep; null baselines; mapped figures."""
    chance = random.Random(0)  # noqa: S311 (ratings, no secrets)

    def verdicts(level: float) -> dict[str, Verdict]:
        found: dict[str, Verdict] = {
            f"q{number}": Rating(min(5.0, max(1.0, level + chance.choice((-1.0, -0.5, 0.0, 0.5, 1.0)))))
            for number in range(4)
        }
        return found | {"q4": Unrated("refusal")}

    def cells(level: float, **method: Any) -> list[Cell]:
        made = [cell(str(target), verdicts(level if target.pole == "high" else 6 - level)) for target in TARGETS]
        about = Provenance(backend="hf", versions={"torch": "2.6"}, fit=FitCost(seconds=3.0, neurons=5))
        named = {"name": "simple", "version": "1", **method}
        return [replace(one, settings=one.settings | {"method": named}, provenance=about) for one in made]

    baseline = cells(4.0)
    by_strength = {
        strength: cells(level, name="npti", strength=strength, strength_protocol="given")
        for strength, level in ((1.0, 3.5), (1.5, 4.2))
    }
    sweep = build_sweep(baseline, by_strength, slack=0.1)
    tuned = cells(4.4, name="npti", strength=sweep.method.strength, strength_protocol="held-out")
    combined = cells(3.8, name="combined", settings={"parts": ["p2", {"name": "lora", "settings": {"rank": 8}}]})
    answers = attack_answers(1)
    rows = [
        build_floor(kind, [RatedAttack(one, Rating(3.0), Rating(4.0)) for one in answers[kind]]) for kind in ATTACKS
    ]
    every = [*baseline, *tuned, *combined, *cells(3.0, name="none")]
    board = build_board(
        "full", every, caveat="c", sweeps=[sweep], floors=Floors(questions=1, answers_sha256="h", rows=rows)
    )
    return with_mapped(board, every, _calibration())


def write_full_board(folder: Path) -> Path:
    """Write the board; returns its JSON file."""
    return write_board(full_board(), folder)[0]


def _calibration() -> Any:
    from personalitybench.judging.agreement.calibration import Calibration

    errors = {"raw": 0.5, "raw_interval": None, "mapped": 0.4, "mapped_interval": None, "constant": 0.6, "gained": 0.1}
    fitted = {
        "points": [[1.0, 1.5], [5.0, 4.5]],
        "n": 40,
        "questions": 20,
        "errors": {**errors, "n": 40, "gained_interval": None},
    }
    return Calibration.model_validate(
        {"judge": JUDGE, "reference": {"id": "gpt"}, "source": "s", "folds": 5, "seed": 0, "maps": {"trait": fitted}}
    )
