"""Processes that fetch in batches and are killed, one after each step: ``python -m tests.killed_batch PROFILE COUNT``.

With ``FIRST LAST`` after that only these answers are fetched, by one process that nobody kills.

A step is what changes anything: a write of the journal, a file that is moved or removed, replies that are kept. The
first child is killed before its first step, the second after it, and so on, each after the whole of the others' work
was begun anew in a cache of its own and is then finished by a child that lives. Prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from personalitybench.judging import base, batch_journal
from personalitybench.judging.base import RatingRequest
from personalitybench.judging.chat_judge import ChatJudge
from personalitybench.judging.responses import ResponseStore
from tests.killed_judge import items


def fetch(profile: str, asked: list[RatingRequest]) -> None:
    judge = base.judges.get("chat")(base.load_profile(profile))
    assert isinstance(judge, ChatJudge)
    judge.fetch_in_batches(asked, lambda _: None)


def kill_at(moment: int) -> None:
    """Have this process killed before (even) or after (odd) one of its steps."""
    steps = iter(range(10**6))

    def dangerous(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **named: Any) -> Any:
            number = next(steps)
            if number * 2 == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            done = step(*arguments, **named)
            if number * 2 + 1 == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return stepping

    for owner, name in (
        (batch_journal, "write_json"),
        (Path, "rename"),
        (Path, "unlink"),
        (ResponseStore, "put_many"),
    ):
        setattr(owner, name, dangerous(getattr(owner, name)))


def child(work: Callable[[], None]) -> int:
    """Do something in another process; gives its status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(profile: str, count: int) -> None:
    asked = items(count)
    with tempfile.TemporaryDirectory() as cache:  # imports are done once, here, and not in every child
        os.environ["PERSONALITYBENCH_CACHE"] = cache
        fetch(profile, [RatingRequest("?", "Nobody is killed for this one.", "openness")])
    for moment in range(1000):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["PERSONALITYBENCH_CACHE"] = cache
            # Other answers each time: to the server they are other requests.
            own = [RatingRequest(each.question, f"{each.answer} {moment}", each.aspect) for each in asked]

            def killed(moment: int = moment, own: list[RatingRequest] = own) -> None:
                kill_at(moment)
                fetch(profile, own)

            first = child(killed)
            second = child(lambda own=own: fetch(profile, own))  # type: ignore[misc]
            print(json.dumps({"moment": moment, "first": first, "second": second}), flush=True)  # noqa: T201
        if first == 0:
            return


if __name__ == "__main__":
    if sys.argv[3:]:
        fetch(sys.argv[1], items(int(sys.argv[2]))[int(sys.argv[3]) : int(sys.argv[4])])
    else:
        main(sys.argv[1], int(sys.argv[2]))
