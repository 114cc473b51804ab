"""How long a judge needs for 100,000 ratings whose replies are all kept, against naming and finding the replies alone.

Run: ``python -m benchmarks.kept_ratings``. The judge renders its rubric, names each request, reads the reply from the
store and the rating in the reply; nothing is sent. Prints seconds, their ratio, and peak memory after the first tenth
and at the end.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from personalitybench.judging import Rating, RatingRequest, rate_all
from personalitybench.judging.base import JudgeProfile
from personalitybench.judging.chat_judge import ChatJudge, store_path
from personalitybench.judging.responses import ResponseStore, StoredResponse, request_key
from personalitybench.judging.rubrics import load_rubric

COUNT = 100_000
PIECE = ChatJudge.at_a_time
T = TypeVar("T")
URL = "http://127.0.0.1:9/v1"  # nothing listens there
SAMPLING = {"temperature": 0, "max_tokens": 160, "seed": 0}
PROFILE = {
    "id": "kept",
    "provider": "chat",
    "summary": "for a benchmark",
    "settings": {"model": "judge", "base_url": URL, "sampling": SAMPLING},
}
ANSWER = "I would call two friends, ask them over, and talk until late about all that happened in the week. " * 3
REPLY = StoredResponse("It tells of company and warmth. [[4]]", "judge", "stop", 640, 12, "2026-11-22T12:00:00+00:00")


def items() -> Iterator[RatingRequest]:
    """Make answers up; each is rated for a trait and for fluency."""
    for number in range(COUNT // 2):
        for aspect in ("extraversion", "fluency"):
            yield RatingRequest(f"What would you do on evening {number % 500}?", f"{number} {ANSWER}", aspect)


def pieces(rest: Iterable[T]) -> Iterator[list[T]]:
    """As many at a time as a judge takes."""
    rest = iter(rest)
    while piece := list(islice(rest, PIECE)):
        yield piece


def keys() -> Iterator[str]:
    """Name the requests."""
    rubric = load_rubric("project")
    return (request_key("judge", URL, rubric.messages(item), SAMPLING) for item in items())


def peak() -> float:
    """Peak memory of this process so far, in MiB."""
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["PERSONALITYBENCH_CACHE"] = str(Path(name))
        with ResponseStore(store_path()) as store:
            for piece in pieces(keys()):
                store.put_many([(key, REPLY) for key in piece])
            started = time.perf_counter()
            found = sum(len(store.get_many(piece)) for piece in pieces(keys()))
            alone = time.perf_counter() - started
        judge = ChatJudge(JudgeProfile.model_validate(PROFILE))
        rated, early = 0, 0.0
        started = time.perf_counter()
        for piece in pieces(items()):
            rated += sum(isinstance(verdict, Rating) and verdict.value == 4 for verdict in rate_all(judge, piece))
            early = early if early or rated < COUNT // 10 else peak()
        seconds = time.perf_counter() - started
        if (found, rated, judge.spending.calls) != (COUNT, COUNT, 0):
            raise SystemExit(f"{found} found, {rated} rated, {judge.spending.calls} asked for: not {COUNT} kept ones")
        print(f"{COUNT:,} kept ratings: {seconds:.1f} s; naming and finding their replies alone: {alone:.1f} s")
        print(f"ratio: {seconds / alone:.2f}")
        print(f"peak memory: {early:.0f} MiB after a tenth, {peak():.0f} MiB at the end")


if __name__ == "__main__":
    main()
