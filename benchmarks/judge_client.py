"""How near the chat client comes to the ideal rate, and whether it asks anything twice without need.

Run from the checkout: ``python -m benchmarks.judge_client``. A server of our own on loopback (``tests/chat_server.py``,
in a process of its own) answers after 200 ms; the client has 64 requests in flight, so the ideal rate is 320 a second.
Prints the share of it, and the peak memory (of the whole process) beside that of a fifth of the ratings; then the same
with 5 % 429, 2 % 500, 1 % time-outs and 1 % garbage, where no share is to be expected: a client that halves its window
at each 429 is slow on purpose. Exit status 1 if a request got lost or was asked more often than the faults that it met
require.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalitybench.judging.base import Unrated
from personalitybench.judging.chat_client import ChatClient, ChatSettings, Reply

LATENCY = 0.2
CONCURRENCY = 64
MISHAPS = ("5:429", "2:500", "1:stall", "1:garbage")
ANSWER = "I would ask them how they are, and listen before I say anything of my own. " * 15


@contextlib.contextmanager
def served(mishaps: tuple[str, ...]) -> Iterator[str]:
    """Start the server; gives its base URL."""
    command = [sys.executable, "-m", "tests.chat_server", "--latency", str(LATENCY), "--mishaps", *mishaps]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


@dataclass
class Measured:
    """What came of one round."""

    seconds: float
    requests: int
    outcomes: Counter[str]
    unexplained: int
    megabytes: float
    report: dict[str, Any]


async def ask(url: str, count: int, timeout: float) -> Measured:
    """Ask for ``count`` ratings."""
    outcomes: Counter[str] = Counter()
    unexplained = 0

    def done(_: int, outcome: Reply | Unrated) -> None:
        nonlocal unexplained
        outcomes["reply" if isinstance(outcome, Reply) else outcome.reason] += 1
        unexplained += isinstance(outcome, Unrated) and not outcome.detail

    settings = ChatSettings("judge", url, concurrency=CONCURRENCY, timeout=timeout, sampling={"temperature": 0})
    requests = ([{"role": "user", "content": f"{number}: {ANSWER}"}] for number in range(count))
    async with ChatClient(settings) as client:
        started = time.perf_counter()
        await client.ask_all(requests, done)
        seconds = time.perf_counter() - started
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/report") as answer:  # noqa: S310 (our own server)
        report = json.load(answer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measured(seconds, client.requests, outcomes, unexplained, peak, report)


def one_round(mishaps: tuple[str, ...], count: int, timeout: float) -> Measured:
    """Start a server and ask it."""
    with served(mishaps) as url:
        return asyncio.run(ask(url, count, timeout))


def in_a_process(*arguments: str) -> Measured:
    """Measure one round in a fresh process, so that each begins with the same memory."""
    command = [sys.executable, "-m", "benchmarks.judge_client", "--child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ.copy())
    fields = json.loads(done.stdout)
    return Measured(**fields | {"outcomes": Counter(fields["outcomes"])})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--timeout", type=float, default=3.0, help="of one try; a stalled one costs this much")
    parser.add_argument("--faulty", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measured = one_round(MISHAPS if options.faulty else (), options.count, options.timeout)
        print(json.dumps(vars(measured)))
        return
    size = ("--timeout", str(options.timeout), "--count")
    good = in_a_process(*size, str(options.count))
    ideal = options.count * LATENCY / CONCURRENCY
    print(f"{options.count} ratings in {good.seconds:.1f} s: {ideal / good.seconds:.2f} of the ideal rate")
    few = in_a_process(*size, str(options.count // 5))
    print(
        f"peak memory: {few.megabytes:.0f} MiB for {options.count // 5}, {good.megabytes:.0f} MiB for {options.count}"
    )
    bad = in_a_process(*size, str(options.count), "--faulty")
    print(f"with {', '.join(MISHAPS)}: {bad.seconds:.1f} s, {ideal / bad.seconds:.2f} of the ideal rate")
    print(f"  {bad.report['faults']} faults met; outcomes: {dict(bad.outcomes)}, unexplained: {bad.unexplained}")
    lost = options.count - sum(bad.outcomes.values())
    print(f"  lost: {lost}; asked more often than their faults need: {bad.report['needless']}")
    sys.exit(bool(lost or bad.unexplained or bad.report["needless"] or good.report["needless"]))


if __name__ == "__main__":
    main()
