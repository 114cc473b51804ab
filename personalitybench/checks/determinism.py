"""Whether ``induce`` gives the same whenever, wherever and in whatever order it is asked."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from personalitybench.checks.processes import induce_elsewhere
from personalitybench.checks.results import BrokenPromiseError, NotCheckedError, Note
from personalitybench.checks.subject import Subject, plain_data, show_place

ADVICE = "draw with self.context.draw(key, count, ...), and use no clock, no counter and no order of a set"


def deterministic(subject: Subject) -> str:
    """The same arguments give the same induction: by any instance, in any order, in any process."""
    with _restored():
        _reseed(1)
        before = _random_states()
        first = plain_data(subject.induce(subject.ready(), subject.asked))
        for name, state in _random_states().items():
            if name in before and state != before[name]:
                raise BrokenPromiseError(f"induce draws from the generator of {name}, or seeds it: {ADVICE}")
        _reseed(2)
        later = plain_data(subject.induce(subject.ready(), reversed(subject.asked)))
    _compare(first, later, "asked in another order, of another instance")
    subject.repeats = True
    try:
        others = induce_elsewhere(subject)
    except NotCheckedError as reason:
        return Note(f"two instances, two orders; not in other processes: {reason}")
    for other in others:
        _compare(first, other, "in another process")
    return f"two instances, two orders, {len(others)} other processes"


def _compare(first: Mapping[tuple[str, str], Any], other: Mapping[tuple[str, str], Any], how: str) -> None:
    for place, induction in first.items():
        fields = [name for name, value in induction.items() if other[place].get(name) != value]
        if fields:
            raise BrokenPromiseError(
                f"the induction's {' and '.join(fields)} differs when it is {how} ({show_place(place)}): {ADVICE}"
            )


def _reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def _random_states() -> dict[str, Any]:
    _, keys, *rest = np.random.get_state()
    states = {"random": random.getstate(), "numpy.random": (np.asarray(keys).tobytes(), *rest)}
    torch: Any = sys.modules.get("torch")
    return states if torch is None else states | {"torch": torch.get_rng_state().numpy().tobytes()}


@contextmanager
def _restored() -> Iterator[None]:
    """Put the generators back as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    torch: Any = sys.modules.get("torch")
    tensors = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        if torch is not None:
            torch.set_rng_state(tensors)
