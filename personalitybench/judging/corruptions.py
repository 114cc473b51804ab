"""Ways to spoil a fluent text, each seeded: what the head for fluency learns to tell from the original."""

from __future__ import annotations

import random
from collections.abc import Callable

Corruption = Callable[[str, random.Random], str]


def shuffle_words(text: str, draw: random.Random) -> str:
    """All words in random order."""
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def swap_neighbours(text: str, draw: random.Random) -> str:
    """Every sixth word changes places with the next."""
    words = text.split()
    for index in range(draw.randrange(3), len(words) - 1, 6):
        words[index], words[index + 1] = words[index + 1], words[index]
    return " ".join(words)


def garble_letters(text: str, draw: random.Random) -> str:
    """The inner letters of every third word are mixed."""
    words = text.split()
    for index in range(draw.randrange(3), len(words), 3):
        inner = list(words[index][1:-1])
        draw.shuffle(inner)
        words[index] = words[index][:1] + "".join(inner) + words[index][1:][-1:]
    return " ".join(words)


def drop_words(text: str, draw: random.Random) -> str:
    """Every fourth word is missing."""
    start = draw.randrange(4)
    return " ".join(word for index, word in enumerate(text.split()) if (index + start) % 4)


def loop_phrase(text: str, draw: random.Random) -> str:
    """The text runs into a phrase that repeats, as a steered model's does."""
    words = text.split()
    cut = draw.randrange(max(1, len(words) // 3), max(2, len(words)))
    phrase = words[max(0, cut - 5) : cut]
    return " ".join(words[:cut] + phrase * 8)


def repeat_sentences(text: str, draw: random.Random) -> str:  # noqa: ARG001 (one signature for all)
    """The first half is said three times."""
    words = text.split()
    return " ".join(words[: max(4, len(words) // 2)] * 3)


# How fluent the result is, 1-5, as a reader would rate it.
CORRUPTIONS: dict[str, tuple[Corruption, float]] = {
    "shuffle_words": (shuffle_words, 1.0),
    "garble_letters": (garble_letters, 2.0),
    "drop_words": (drop_words, 2.0),
    "loop_phrase": (loop_phrase, 1.0),
    "repeat_sentences": (repeat_sentences, 2.0),
    "swap_neighbours": (swap_neighbours, 3.0),
}
