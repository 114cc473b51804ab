"""Files of questions, descriptions and neurons, mutated: each is read, or refused with its name and a reason."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalitybench.activations.official_files import read_official_file, write_official_file
from personalitybench.errors import PersonalityBenchError
from personalitybench.leaderboard.lm_eval_samples import read_samples
from personalitybench.questions import FolderSource, parse_questions
from personalitybench.traits import TARGETS
from tests.made_up import make_set
from tests.mutations import damage_bytes, mutant_count

COUNT = mutant_count(150)


def questions(path: Path) -> Any:
    return parse_questions(path, "evaluate", "openness")


def descriptions(path: Path) -> Any:
    return FolderSource(path.parent).descriptions


def neurons(path: Path) -> Any:
    return read_official_file(path, (4, 16))


def samples(path: Path) -> Any:
    return list(read_samples(path, None, None))


def write_questions(path: Path) -> None:
    path.write_text("".join(json.dumps({"question": f"Nr. {n}: what do you do?", "tag": "a"}) + "\n" for n in range(5)))


def write_descriptions(path: Path) -> None:
    path.write_text("".join(json.dumps({target.file_key: "You are calm."}) + "\n" for target in TARGETS))


def write_samples(path: Path) -> None:
    rows = ({"filter": "none", "doc": {"id": str(n)}, "resps": [["Yes."]]} for n in range(4))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


READERS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], Any]]] = {
    "questions": ("Openness.json", write_questions, questions),
    "descriptions": ("description.json", write_descriptions, descriptions),
    "neurons": ("Openness_dict.json", lambda path: write_official_file(path, make_set()), neurons),
    "samples": ("samples_x.jsonl", write_samples, samples),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_mutated_file_is_read_or_refused_with_its_name(kind: str, tmp_path: Path) -> None:
    name, write, read = READERS[kind]
    path = tmp_path / name
    write(path)
    read(path)
    whole, draw = path.read_bytes(), random.Random(kind)  # noqa: S311 (reproducible, not secret)
    refused = 0
    for number in range(COUNT):
        mutant = whole
        for _ in range(draw.randint(1, 3)):
            mutant = damage_bytes(mutant, draw)
        path.write_bytes(mutant)
        try:
            value = read(path)
        except PersonalityBenchError as error:
            refused += 1
            assert name in str(error), (number, error)
            assert len(str(error)) < 2000, number
        else:
            repr(value).encode()  # no half of a surrogate pair came through
    assert 0 < refused < COUNT


CONTENTS = {
    "half a pair": (r'{"question": "cut \ud83d here?"}', "half of a surrogate pair"),
    "deep": ("[" * 100_000, "nested more than 50 deep"),
    "deep and closed": ('{"question": ' + "[" * 60 + "]" * 60 + "}", "nested more than 50 deep"),
    "a key twice": ('{"question": "One?", "question": "Two?"}', "the key 'question' stands twice"),
    "NaN": ('{"question": "One?", "weight": NaN}', "NaN is no number of JSON"),
    "digits": ('{"question": "One?", "weight": ' + "1" * 5000 + "}", "a number of 5000 digits"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_line_of_questions_is_refused_with_file_line_and_reason(name: str, tmp_path: Path) -> None:
    content, reason = CONTENTS[name]
    path = tmp_path / "Openness.json"
    path.write_text('{"question": "First?"}\n' + content + "\n")
    with pytest.raises(PersonalityBenchError, match=rf"Openness\.json:2 is not JSON \(.*{re.escape(reason)}"):
        questions(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "nested more than 50 deep"),
        ('{"0": [], "0": []}', "the key '0' stands twice"),
        ('{"0": [[0, ' + "1" * 5000 + ", 0.1, 0.1, 0.1]]}", "a number of 5000 digits"),
        (r'{"\ud83d": []}', "half of a surrogate pair"),
    ],
)
def test_a_neuron_file_is_refused_with_the_reason(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "Openness_dict.json"
    path.write_text(content)
    with pytest.raises(PersonalityBenchError, match=rf"neuron file .*Openness_dict\.json is not JSON \(.*{reason}"):
        neurons(path)


@pytest.mark.parametrize("kind", READERS)
def test_a_byte_order_mark_is_no_mistake(kind: str, tmp_path: Path) -> None:
    name, write, read = READERS[kind]
    path = tmp_path / name
    write(path)
    expected = read(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path) == expected


@pytest.mark.parametrize("kind", ["questions", "descriptions", "neurons"])
def test_what_is_no_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    name, _, read = READERS[kind]
    path = tmp_path / name
    os.mkfifo(path)
    if kind == "descriptions":
        with pytest.raises(PersonalityBenchError, match="does not exist"):
            read(path)
        return
    with pytest.raises(PersonalityBenchError, match="is no regular file"):
        read(path)
