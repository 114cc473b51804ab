"""Workers that send requests: orderly ends, with requests in flight and without."""

from __future__ import annotations

import asyncio
import time

import pytest

from personalitybench.interrupts import run_coroutine
from personalitybench.workers import Workers


class Requests:
    """Requests of made-up lengths; the one of a number fails."""

    def __init__(self, seconds: float, failing: int = -1) -> None:
        self.workers = Workers("http://server", 10.0)
        self.sent = self.done = 0
        self.seconds, self.failing = seconds, failing

    async def work(self) -> None:
        while not self.workers.stopping and self.sent < 40:
            number, self.sent = self.sent, self.sent + 1
            with self.workers.in_flight():
                await asyncio.sleep(0.01 if number == self.failing else self.seconds)
            if number == self.failing:
                raise ZeroDivisionError
            self.done += 1
            await asyncio.sleep(0)


def test_error_waits_for_requests_in_flight_and_sends_no_more() -> None:
    requests = Requests(0.2, failing=3)
    with pytest.raises(ZeroDivisionError):
        run_coroutine(requests.workers.run(requests.work, 8))
    assert (requests.sent, requests.done) == (8, 7)


def test_worker_without_a_request_in_flight_ends_at_once() -> None:
    requests = Requests(0.2, failing=0)

    async def work() -> None:
        await (requests.work() if requests.sent == 0 else asyncio.sleep(3600.0))

    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        run_coroutine(requests.workers.run(work, 8))
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("cancellations", "done"), [(1, 8), (2, 0)])
def test_cancellation_waits_for_requests_in_flight_and_a_second_one_does_not(cancellations: int, done: int) -> None:
    requests = Requests(1.0)

    async def cancelled() -> int:
        task = asyncio.create_task(requests.workers.run(requests.work, 8))
        for _ in range(cancellations):
            await asyncio.sleep(0.1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert run_coroutine(cancelled()) == 1
    assert (requests.sent, requests.done) == (8, done)


def test_workers_run_again_after_an_end() -> None:
    requests = Requests(0.01, failing=0)
    with pytest.raises(ZeroDivisionError):
        run_coroutine(requests.workers.run(requests.work, 1))
    run_coroutine(requests.workers.run(requests.work, 4))
    assert (requests.sent, requests.done) == (40, 39)


def test_coroutine_runs_inside_a_running_loop() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 3

    async def cell() -> int:
        return run_coroutine(inner())

    async def failing() -> None:
        raise ZeroDivisionError

    async def failing_cell() -> None:
        run_coroutine(failing())

    assert asyncio.run(cell()) == 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(failing_cell())
