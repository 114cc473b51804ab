"""How long 100,000 stored replies of a judge take to read back, and in how much memory, against JSON lines.

Run: ``python benchmarks/response_cache.py``. Prints seconds, peak memory and their ratios. The replies are made up: an
explanation of about 30 words and a rating. Both ways begin with the messages (2.5 kB, as a rubric with a question and
an answer has), name each request by its hash, find its reply and read the rating in it. The JSON lines hold the same
replies and are read into a dictionary, as a cache of that kind must. The store verifies a checksum of each row, the
lines have none. Each way runs in a process of its own, in turn.
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from personalitybench.judging.responses import ResponseStore, StoredResponse, request_key

COUNT = 100_000
REPEATS = 5
WAYS = ("nothing", "keys", "store", "lines")
PIECE = 1000  # replies that are looked at together
RUBRIC = "Rate how much of the trait the answer shows, from 1 to 5, and explain it in thirty words at most. " * 16
ANSWER = "I would call two friends, ask them over, and talk until late about all that happened in the week. " * 8
EXPLANATION = "The writer looks for company and talks with warmth about an evening with many people. " * 2


def keys() -> Iterator[str]:
    """Name the requests."""
    for number in range(COUNT):
        messages = [{"role": "system", "content": RUBRIC}, {"role": "user", "content": f"{number} {ANSWER}"}]
        yield request_key("judge-2026", "https://judge.example/v1", messages, {"temperature": 0, "max_tokens": 200})


def reply(number: int) -> StoredResponse:
    """Make a reply up."""
    text = f"{number} {EXPLANATION}\n[[{1 + number % 5}]]"
    return StoredResponse(text, "judge-2026-11", "stop", 640, 48, "2026-11-22T12:00:00+00:00")


def rating(text: str) -> int:
    """Read the rating in a reply."""
    return int(re.findall(r"\[\[(\d)\]\]", text)[-1])


def from_store(folder: Path) -> int:
    """Sum of the ratings, from the store, in pieces as a judge asks for them."""
    total = 0
    with ResponseStore(folder / "responses.db") as store:
        rest = keys()
        while piece := list(islice(rest, PIECE)):
            found = store.get_many(piece)
            total += sum(rating(found[key].text) for key in piece)
    return total


def from_lines(folder: Path) -> int:
    """Sum of the ratings, from JSON lines."""
    found = {}
    with (folder / "responses.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            key = row.pop("key")
            found[key] = StoredResponse(**row)
    return sum(rating(found[key].text) for key in keys())


def measure(way: str, folder: Path) -> None:
    """Print seconds, peak memory in MB and the sum."""
    started = time.perf_counter()
    total = 0
    if way == "keys":
        total = sum(1 for _ in keys())
    elif way != "nothing":
        total = from_store(folder) if way == "store" else from_lines(folder)
    seconds = time.perf_counter() - started
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, kilobytes elsewhere
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, total)


def write(folder: Path) -> None:
    """Write both files."""
    with ResponseStore(folder / "responses.db") as store, (folder / "responses.jsonl").open("w") as stream:
        rest = enumerate(keys())
        started = time.perf_counter()
        while piece := [(key, reply(number)) for number, key in islice(rest, PIECE)]:
            store.put_many(piece)
            stream.writelines(json.dumps({"key": key, **asdict(response)}) + "\n" for key, response in piece)
        print(f"written in {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
        for number in range(1000):
            store.put(request_key("other", "", [], {"seed": number}), reply(number))
        print(f"one by one, each on disk before the next: {1000 / (time.perf_counter() - started):,.0f} a second")
    for name in ("responses.db", "responses.jsonl"):
        print(f"{name}: {(folder / name).stat().st_size / 1e6:.0f} MB")


def main() -> None:
    """Measure and print."""
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
        return
    figures: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        for _ in range(REPEATS):
            for way in WAYS:
                command = [sys.executable, __file__, way, name]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, megabytes, total = done.stdout.split()
                expected = {"nothing": 0, "keys": COUNT}.get(way, 3 * COUNT)
                if int(total) != expected:
                    raise SystemExit(f"{way}: {total} came, not {expected}")
                figures[way].append((float(seconds), float(megabytes)))
    median = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in figures.items()}
    base = median["nothing"][1]
    for way, what in (("keys", "naming requests alone"), ("store", "store"), ("lines", "JSON lines")):
        seconds, megabytes = median[way]
        print(
            f"{what} (median of {REPEATS}): {seconds:.2f} s, {megabytes - base:.0f} MB above the {base:.0f} of imports"
        )
    store, lines, named = median["store"], median["lines"], median["keys"][0]
    print(
        f"seconds, store / JSON lines: {store[0] / lines[0]:.2f}; without naming: "
        f"{(store[0] - named) / (lines[0] - named):.2f}"
    )
    print(f"memory above imports, store / JSON lines: {(store[1] - base) / (lines[1] - base):.3f}")


if __name__ == "__main__":
    main()
