"""What the vLLM plug-in decides on the host, without vLLM: tokens to edit and count, slots, versions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.backends.vllm.router import (
    FIELDS,
    KEEP,
    KEEP_ALL,
    POSITION,
    SEED,
    SHARD,
    SLOT,
    STRENGTH,
    Router,
)
from personalitybench.backends.vllm.versions import TESTED, check_version, is_tested
from personalitybench.backends.wishes import KEY, Wish
from personalitybench.errors import ConfigurationError, MissingDependencyError, NeedsNotMetError

SHARDS = 3

WISHES = st.one_of(
    st.none(),
    st.builds(
        Wish,
        intervention=st.sampled_from([None, Path("a")]),
        strength=st.floats(-4, 4, width=32),
        keep=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        seed=st.integers(-(2**31), 2**40),
        first_token=st.booleans(),
        shard=st.one_of(st.none(), st.integers(0, SHARDS - 1)),
        answer_from=st.one_of(st.none(), st.integers(0, 30)),
    ),
)


@dataclass
class Sequence:
    """A request as a scheduler has it, and which of its positions were edited and counted."""

    name: str
    wish: Wish | None
    slot: int
    prompt: int
    length: int
    computed: int = 0
    known: int = 0
    edited: set[int] = field(default_factory=set)
    counted: set[int] = field(default_factory=set)

    @property
    def first(self) -> int:
        assert self.wish is not None
        return self.prompt if self.wish.answer_from is None else self.wish.answer_from

    def orders(self, position: int) -> tuple[bool, bool]:
        """Whether a position is edited, and whether it is counted now."""
        if self.wish is None:
            return False, False
        edited = self.slot > 0 and position >= self.first - int(self.wish.first_token)
        counted = self.wish.shard is not None and position >= self.first and position not in self.counted
        return edited, counted


def check_rows(packed: np.ndarray, at: int, one: Sequence, chunk: int) -> tuple[int, list[int]]:
    """Compare a request's rows with the rules, token by token; note what was done.

    Returns:
        Tokens edited, and the shard of each counted token.
    """
    edits, shards = 0, []
    for offset in range(chunk):
        position, row = one.computed + offset, packed[at + offset]
        edited, counted = one.orders(position)
        assert row[SLOT] == (one.slot if edited else 0)
        assert row[SHARD] == (one.wish.shard if counted and one.wish else -1)
        if edited and one.wish:
            assert row[STRENGTH : STRENGTH + 1].view(np.float32)[0] == np.float32(one.wish.strength)
            assert row[POSITION] == position
            assert int(row[SEED]) & KEEP_ALL == one.wish.seed & KEEP_ALL
            assert int(row[KEEP]) & KEEP_ALL == min(int(one.wish.keep * 2**32), KEEP_ALL)
            one.edited.add(position)
            edits += 1
        if counted and one.wish and one.wish.shard is not None:
            one.counted.add(position)
            shards.append(one.wish.shard)
    return edits, shards


def advance(router: Router, batch: list[Sequence], chunks: list[int]) -> None:
    """Have the router lay out a step, and compare all of it."""
    starts = np.cumsum([0, *chunks])
    for one in batch:
        if one.name not in router:
            router.add(one.name, one.wish, one.slot, one.prompt)
    step = router.step([one.name for one in batch], starts, [one.computed for one in batch])
    packed = np.zeros((starts[-1], len(FIELDS)), np.int32)
    packed[:, SHARD] = -1
    if not step.idle:
        packed = step.packed
    edits, shards = 0, []
    for one, chunk, at in zip(batch, chunks, starts, strict=False):
        edited, counted = check_rows(packed, int(at), one, chunk)
        edits, shards = edits + edited, shards + counted
        one.computed += chunk
        one.known = max(one.known, one.computed)
    assert (step.tokens, step.edited) == (starts[-1], edits)
    assert step.counted.tolist() == np.bincount(shards, minlength=SHARDS).tolist()


@settings(max_examples=150, deadline=None)
@given(wishes=st.lists(WISHES, min_size=1, max_size=5), seed=st.integers(0, 2**32), forgets=st.booleans())
def test_every_schedule_gives_what_a_look_at_each_token_gives(
    wishes: list[Wish | None], seed: int, forgets: bool
) -> None:
    """Chunks of any size, preemption at any time, batches in any order.

    Args:
        wishes: Of the requests.
        seed: Of the schedule.
        forgets: Whether a preempted request is taken out and added again (runner V2), or stays (V1).
    """
    draw = np.random.default_rng(seed)
    requests = []
    for number, wish in enumerate(wishes):
        prompt, answer = draw.integers(1, [25, 13]).tolist()
        slot = int(draw.integers(1, 4)) if wish is not None and wish.intervention is not None else 0
        requests.append(Sequence(str(number), wish, slot, prompt, prompt + answer - 1))
    router = Router(256, SHARDS)
    while waiting := [one for one in requests if one.computed < one.length]:
        batch = [waiting[index] for index in draw.permutation(len(waiting))[: draw.integers(1, len(waiting) + 1)]]
        # Of what is known: the prompt, and of the answer what was there before or the next token.
        known = [max(one.prompt, one.known, one.computed + 1) - one.computed for one in batch]
        advance(router, batch, [int(draw.integers(1, most + 1)) for most in known])
        for one in batch:
            finished = one.computed == one.length
            preempted = not finished and draw.random() < 0.15
            if finished or (preempted and forgets):
                router.remove(one.name)
            if preempted:
                one.computed = 0
    assert router.edited_tokens == sum(len(one.edited) for one in requests)
    for one in requests:
        if one.wish is not None and one.wish.shard is not None:
            assert one.counted == set(range(one.first, one.length))
    assert len(router) == 0


def test_many_requests_and_many_that_left() -> None:
    """Tables grow with the requests that are here, and their rows are used again."""
    router = Router(1024, 1)
    for wave in range(3):
        names = [f"{wave}-{number}" for number in range(200)]
        for number, name in enumerate(names):
            router.add(name, Wish(intervention=Path("a"), strength=float(number), shard=0), 1 + number % 3, 1)
        assert len(router) == 200
        assert router.slots_in_use == {1, 2, 3}
        step = router.step(names, range(201), [5] * 200)
        assert step.packed[:, STRENGTH].copy().view(np.float32).tolist() == list(range(200))
        assert (step.edited, step.counted.tolist()) == (200, [200])
        for name in names:
            router.remove(name)
        assert (len(router), router.slots_in_use) == (0, set())
    assert router.edited_tokens == 600
    router.remove("nobody")


def test_rows_that_a_longer_step_left_behind_become_idle() -> None:
    """A captured graph may run with more rows than the step has tokens."""
    torch = pytest.importorskip("torch")
    from personalitybench.backends.vllm.state import GateState

    state = GateState(
        layers=1,
        neurons=4,
        first_neuron=0,
        all_neurons=4,
        slots=2,
        max_tokens=16,
        statistics=None,
        stock={},
        device=torch.device("cpu"),
    )
    router = Router(16, 1)
    router.add("steered", Wish(intervention=Path("a"), strength=1.0, shard=0), 1, 1)
    state.order(router.step(["steered"], [0, 9], [0]))
    assert (state.orders[:, SLOT] > 0).tolist() == [False] + [True] * 8 + [False] * 7
    state.order(router.step(["plain", "steered"], [0, 2, 4], [0, 9]))
    assert (state.orders[:, SLOT] > 0).tolist() == [False] * 2 + [True] * 2 + [False] * 12
    assert (state.orders[:, SHARD] >= 0).tolist() == [False] * 2 + [True] * 2 + [False] * 12
    state.order(router.step(["plain"], [0, 16], [0]))
    assert not state.orders[:, SLOT].any()
    assert (state.orders[:, SHARD] == -1).all()
    assert state.scheduled == 8 + 2


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            {"strenght": 1.0},
            "cannot hold strenght; it may hold adapter, adapter_strength, intervention, strength, keep",
        ),
        ({"intervention": "a"}, "names an intervention without a strength"),
        ({"intervention": "a", "strength": "much"}, "is not understood: could not convert string to float"),
        ({"intervention": "a", "strength": float("nan")}, "strength is nan"),
        ({"intervention": "a", "strength": 1.0, "keep": -0.1}, "keep is -0.1"),
        ({"shard": -1}, "shard is -1, not a position"),
        ({"shard": 0.5}, "shard is 0.5, not a position"),
        ("a", "must be a mapping, not str"),
    ],
)
def test_wishes_that_are_not_understood_are_refused(wanted: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Wish.parse({KEY: wanted})


def test_wishes_are_read_from_extra_args() -> None:
    assert Wish.parse(None) is None
    assert Wish.parse({"other": 1}) is None
    assert Wish.parse({KEY: None}) is None
    wanted = {"intervention": "a/b", "strength": 2, "keep": 0.5, "seed": 3, "first_token": True, "answer_from": 4}
    assert Wish.parse({KEY: wanted}) == Wish(
        intervention=Path("a/b"), strength=2.0, keep=0.5, seed=3, first_token=True, answer_from=4
    )


def test_salts_differ_where_cached_values_may() -> None:
    base = Wish(intervention=Path("a"), strength=1.0)
    same = Wish(intervention=Path("elsewhere"), strength=1.0, seed=5)  # nothing is drawn, so the seed changes nothing
    assert (
        base.salt("0" * 64, 10)
        == same.salt("0" * 64, 10)
        == Wish(intervention=Path("a"), strength=1.0, answer_from=10).salt("0" * 64, 3)
    )
    others = [
        base.salt("1" * 64, 10),
        base.salt("0" * 64, 11),
        Wish(intervention=Path("a"), strength=1.5).salt("0" * 64, 10),
        Wish(intervention=Path("a"), strength=1.0, keep=0.9).salt("0" * 64, 10),
        Wish(intervention=Path("a"), strength=1.0, keep=0.9, seed=5).salt("0" * 64, 10),
        Wish(intervention=Path("a"), strength=1.0, first_token=True).salt("0" * 64, 10),
    ]
    assert len({base.salt("0" * 64, 10), *others}) == 1 + len(others)


def test_only_tested_versions_are_taken() -> None:
    check_version("0.32.0")
    assert is_tested("0.32.1")
    assert is_tested("0.33.0")
    for found in ("0.31.2", "0.34.0rc1", "0.34.0", "1.0"):
        with pytest.raises(NeedsNotMetError, match=f"vLLM {found} is outside of the range .*{TESTED}"):
            check_version(found)
    with pytest.raises(MissingDependencyError, match=r"pip install 'personalitybench\[vllm\]'"):
        check_version(None)
