"""Structural mutations of valid JSON, JSON-lines and text files, for tests of readers.

A reader passes if each mutant is accepted or refused with one line::

    for mutant in json_mutants(valid, mutant_count(), seed=0):
        path.write_bytes(mutant)
        assert_accepts_or_refuses(lambda: read(path), mutant)
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from personalitybench.errors import PersonalityBenchError

COUNT_VARIABLE = "PERSONALITYBENCH_MUTANTS"
"""Environment variable with the number of mutants for each reader."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 6, 3.5, -0.0, 1e300, -1e300, 5e-324, 2**63, 10**300, -(10**18)),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "x", "5", "openness:high", "[bold]", "\x1b[2J", "\ud800", "a\nb", "/", "../x", "x" * 3000),
    *([], [[]], [None], ["x"], [1, 2, 3], {}, {"x": 1}, {"unrated": 1}, {"rating": "5"}, {"": {}}),
)
"""Replacements for a value: other types, and numbers and texts that break arithmetic, encoding or layout."""

_RAW = (
    *(b"NaN", b"Infinity", b"null", b"1e999", b"-0.0", b"9" * 4001, b"[" * 200, b"[" * 100_000, b'{"a":' * 100_000),
    *(b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x00", b'"', b"{", b"}", b"\n", b"\n\n", b"\r"),
    *(b"\xe2\x80\xa8", b"\\ud800", b"\\ud83d", b"\\udc00\\ud800", b'{"question": "One?", "question": "Two?"}'),
)


def mutant_count(default: int = 200) -> int:
    """Number of mutants for each reader; :data:`COUNT_VARIABLE` overrides the default."""
    return int(os.environ.get(COUNT_VARIABLE, default))


def json_mutants(value: Any, count: int, seed: int) -> Iterator[bytes]:
    """Yield mutants of a JSON file; one in six is damaged as bytes instead of structurally."""
    chance = random.Random(seed)  # noqa: S311 (mutations, no secrets)
    for _ in range(count):
        if chance.random() < 1 / 6:
            yield damage_bytes(_dump(value), chance)
        else:
            yield _dump(mutate(value, chance))


def jsonl_mutants(rows: Sequence[Any], count: int, seed: int) -> Iterator[bytes]:
    """Yield mutants of a file of JSON lines: a mutated line, lines that are repeated, moved or missing, other bytes."""
    chance = random.Random(seed)  # noqa: S311 (mutations, no secrets)
    for _ in range(count):
        lines = [_dump(row) for row in rows]
        kind = chance.randrange(6)
        if kind < 3:
            place = chance.randrange(len(lines))
            lines[place] = _dump(mutate(rows[place], chance))
        elif kind == 3:
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
        elif kind == 4:
            del lines[chance.randrange(len(lines))]
        whole = b"".join(line + b"\n" for line in lines)
        yield damage_bytes(whole, chance) if kind == 5 else whole


def mutate(value: Any, chance: random.Random) -> Any:
    """Return a copy of a JSON value with one to three places changed."""
    mutant = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        mutant = _mutate_once(mutant, chance)
    return mutant


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return data cut off, with bytes inserted, replaced or removed, or a part of it repeated."""
    start = chance.randrange(len(data) + 1)
    end = min(len(data), start + chance.choice((1, 1, 8, 100)))
    kind = chance.randrange(5)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + chance.choice(_RAW) + data[start:]
    if kind == 2:
        return data[:start] + chance.choice(_RAW) + data[end:]
    if kind == 3:
        return data[:start] + data[end:]
    return data[:end] + data[start:]


def assert_accepts_or_refuses(read: Callable[[], object], mutant: bytes) -> bool:
    """Assert that a reader returns, or raises an error of ours in one line; returns True if it returned."""
    try:
        read()
    except PersonalityBenchError as error:
        assert "\n" not in " ".join(str(error).splitlines()[:1]), error
        assert str(error).strip()
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\nfor {mutant[:3000]!r}") from error
    return True


def _mutate_once(value: Any, chance: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return chance.choice(VALUES)
    holder, key = chance.choice(places)
    kind = chance.randrange(8)
    if kind < 4:
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[chance.choice(("x", "", "id", "\ud800", f"{key} "))] = holder.pop(key)
    elif kind == 6 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == 6 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * chance.choice((-1, 2, 0.5, 1e6)) + chance.choice((0, 1, 1e-9))
    else:
        other, name = chance.choice(places)
        holder[key] = copy.deepcopy(other[name])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with a key or index of it, the deep ones too."""
    if isinstance(value, dict | list):
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(part)


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()
