"""The window of the chat client: its limit, its order, its pauses, and that no place is ever lost."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.judging.chat_window import Window


def test_one_halving_for_all_that_were_sent_together() -> None:
    async def scenario() -> list[int]:
        window = Window(64)
        sent = [await window.enter() for _ in range(10)]
        limits = []
        for number in sent:
            window.turned_away(number, None)
            window.leave()
        limits.append(window.limit)
        later = await window.enter()
        window.turned_away(later, None)
        limits.append(window.limit)
        return limits

    assert asyncio.run(scenario()) == [32, 16]


def test_it_never_closes_and_widens_by_one_for_each_window_of_successes() -> None:
    async def scenario() -> list[int]:
        window = Window(3)
        for _ in range(5):
            window.turned_away(await window.enter(), None)
            window.leave()
        limits = [window.limit]
        for _ in range(8):
            await window.enter()
            window.succeeded()
            window.leave()
            limits.append(window.limit)
        return limits

    assert asyncio.run(scenario()) == [1, 2, 2, 3, 3, 3, 3, 3, 3]


def test_a_pause_holds_everyone_back_and_ends() -> None:
    async def scenario() -> float:
        window = Window(4)
        window.turned_away(await window.enter(), 0.2)
        window.leave()
        started = time.monotonic()
        await asyncio.gather(window.enter(), window.enter())
        return time.monotonic() - started

    assert asyncio.run(scenario()) >= 0.19


def test_first_come_first_served() -> None:
    async def scenario() -> list[int]:
        window = Window(1)
        order: list[int] = []

        async def visit(number: int) -> None:
            await window.enter()
            order.append(number)
            await asyncio.sleep(0)
            window.leave()

        await asyncio.gather(*(visit(number) for number in range(20)))
        return order

    assert asyncio.run(scenario()) == list(range(20))


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from(["ok", "429", "cancel", "error"]), st.integers(0, 3)), max_size=40),
)
def test_no_place_is_lost_or_doubled(most: int, steps: list[tuple[str, int]]) -> None:
    """Whatever visitors do, and whenever they are cancelled: never more inside than allowed, none left waiting."""

    async def scenario() -> tuple[int, int]:
        window = Window(most)
        inside = highest = 0

        async def visit(fate: str, rounds: int) -> None:
            nonlocal inside, highest
            sent = await window.enter()
            inside += 1
            highest = max(highest, inside)
            try:
                for _ in range(rounds):
                    await asyncio.sleep(0)
                if fate == "ok":
                    window.succeeded()
                elif fate == "429":
                    window.turned_away(sent, 0.0001)
            finally:
                inside -= 1
                window.leave()

        tasks = [asyncio.create_task(visit(*step)) for step in steps]
        for number, (fate, rounds) in enumerate(steps):
            if fate == "cancel":
                for _ in range(rounds):
                    await asyncio.sleep(0)
                tasks[number].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        return highest, window.in_flight

    highest, left = asyncio.run(scenario())
    assert highest <= most
    assert left == 0
