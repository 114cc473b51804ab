"""The canary of vLLM, on a stand-in for its engine."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from personalitybench.activations.interventions import Intervention, Operation
from personalitybench.backends.vllm.canary import check_logits, to_prove
from personalitybench.backends.wishes import KEY, Wish
from personalitybench.errors import ModelError

ADD, CLAMP = Operation.ADD, Operation.CLAMP_MAX
Effect = Callable[[Mapping[str, Any]], float]


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("vllm")
    stand_in.SamplingParams = stand_in.TokensPrompt = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stand_in)


class Engine:
    """Answers with one token whose log-probability moves by an effect of the edits, and by noise in a batch."""

    def __init__(self, effect: Effect, noise: float = 0.0) -> None:
        self.effect = effect
        self.noise = noise

    def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        outputs = []
        for place, one in enumerate(params):
            move = self.effect((one.extra_args or {}).get(KEY, {})) + (self.noise if len(prompts) > 1 and place else 0)
            entries = {3: SimpleNamespace(logprob=-1.0 + move), 4: SimpleNamespace(logprob=-math.inf)}
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(logprobs=[entries])]))
        return outputs


def intervention(folder: Path, *operations: Operation) -> str:
    count = len(operations)
    places = np.arange(count, dtype=np.int32)
    layer, values = np.zeros(count, np.int32), np.ones(count, np.float32)
    Intervention((1, 8), layer, places, np.array(operations, np.uint8), values).save(folder)
    return str(folder)


def check(effect: Effect, wanted: dict[str, Any], noise: float = 0.0) -> float:
    return check_logits(Engine(effect, noise), [1, 2, 3], wanted, 2)


def test_the_part_that_moves_less_is_returned(tmp_path: Path) -> None:
    wanted = {"intervention": intervention(tmp_path / "npti", ADD, CLAMP), "strength": 1.0, "adapter": "adapter"}

    def effect(wish: Mapping[str, Any]) -> float:
        return 0.5 * ("adapter" in wish) + 0.25 * wish.get("strength", 0)

    assert check(effect, wanted) == pytest.approx(0.25)


def test_clamps_do_not_prove_additions(tmp_path: Path) -> None:
    wanted = {"intervention": intervention(tmp_path / "npti", ADD, CLAMP), "strength": 1e-6}
    with pytest.raises(ModelError, match="additions changed nothing"):
        check(lambda wish: 0.5 * ("intervention" in wish), wanted)


def test_clamps_alone_are_proven(tmp_path: Path) -> None:
    wanted = {"intervention": intervention(tmp_path / "clamps", CLAMP), "strength": 0.0}
    assert check(lambda wish: 0.5 * ("intervention" in wish), wanted) == pytest.approx(0.5)


@pytest.mark.parametrize(("move", "noise"), [(0.0005, 0.0), (0.1, 0.2), (math.nan, 0.0), (-math.inf, 0.0)])
def test_moves_below_the_noise_of_a_batch_prove_nothing(move: float, noise: float) -> None:
    with pytest.raises(ModelError, match=r"adapter changed nothing|the logits are not finite"):
        check(lambda wish: move * ("adapter" in wish) if wish else 0.0, {"adapter": "adapter"}, noise)


def test_strength_zero_has_nothing_to_prove(tmp_path: Path) -> None:
    folder = Path(intervention(tmp_path / "npti", ADD, CLAMP))
    assert not to_prove(Wish(intervention=folder, strength=0.0), 5)
    assert to_prove(Wish(intervention=folder, strength=0.1), 5)
