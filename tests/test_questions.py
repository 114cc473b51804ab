"""Questions and descriptions: the bundled sample, folders of a user, tables derived from them."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalitybench.errors import ConfigurationError, DataError
from personalitybench.questions import (
    BLOB_IDS,
    COLUMNS,
    FolderSource,
    OfficialSource,
    Question,
    QuestionSource,
    open_source,
    parse_questions,
)
from personalitybench.traits import BIG_FIVE, TARGETS, TRAIT_NAMES

FACETS = {(found.name, facet) for found in BIG_FIVE for facet in found.facets}
EVERYDAY = {"open", "closed", "calm"}  # adjectives of a pole that are everyday words


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuestionSource]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        source = open_source("sample")
        for split in ("evaluate", "identify"):
            source.questions(split)  # derived once for the module
        yield source


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """A small data folder in the layout of the paper's, with nothing but questions."""
    root = tmp_path / "data"
    for part in ("test", "search"):
        (root / part).mkdir(parents=True)
        for found in BIG_FIVE:
            rows = [{"question": f"Is {part} question {n} about {found.name}?"} for n in range(5)]
            (root / part / f"{found.file_name}.json").write_text(lines(rows))
    keys = [{target.file_key: f"You are {n} {target}." for target in TARGETS} for n in range(3)]
    (root / "description.json").write_text(lines(keys))
    return root


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(source: QuestionSource, *about: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = source.questions(*about).to_list()
    return found


# The bundled sample


@pytest.mark.parametrize(("split", "least", "exactly"), [("evaluate", 2, None), ("identify", 6, 6)])
def test_the_sample_covers_every_facet(sample: QuestionSource, split: Any, least: int, exactly: int | None) -> None:
    counts = Counter((row["trait"], row["facet"]) for row in rows_of(sample, split))
    assert counts.keys() == FACETS
    assert min(counts.values()) >= least
    assert exactly is None or set(counts.values()) == {exactly}


def test_no_sample_question_stands_twice(sample: QuestionSource) -> None:
    rows = rows_of(sample, "evaluate") + rows_of(sample, "identify")
    plain = [re.sub(r"\W+", " ", row["question"]).lower().strip() for row in rows]
    assert [text for text, count in Counter(plain).items() if count > 1] == []
    assert len({row["id"] for row in rows}) == len(rows)


def test_evaluation_questions_do_not_name_their_trait(sample: QuestionSource) -> None:
    for row in rows_of(sample, "evaluate"):
        found = next(found for found in BIG_FIVE if found.name == row["trait"])
        adjectives = [adjective.split()[1] for adjective in found.adjectives if adjective.split()[1] not in EVERYDAY]
        for word in (found.name, *adjectives):
            assert not re.search(rf"\b{word}\b", row["question"], re.IGNORECASE), row


def test_every_target_of_the_sample_has_eight_descriptions(sample: QuestionSource) -> None:
    assert list(sample.descriptions) == list(TARGETS)
    every = [text for texts in sample.descriptions.values() for text in texts]
    assert {len(texts) for texts in sample.descriptions.values()} == {8}
    assert len(set(every)) == len(every)
    assert all(text.startswith("You ") for text in every), "descriptions speak to the model"


def test_identification_questions_of_the_sample_have_their_item(sample: QuestionSource) -> None:
    keyings: dict[str, set[str]] = {}
    for row in rows_of(sample, "identify"):
        assert row["item"]
        assert row["topic"]
        keyings.setdefault(row["trait"], set()).add(row["keying"])
    assert keyings == {name: {"+", "-"} for name in TRAIT_NAMES}


@pytest.mark.parametrize("split", ["evaluate", "identify"])
def test_halves_of_the_sample_hold_as_much_of_every_facet(sample: QuestionSource, split: Any) -> None:
    counts = Counter((row["trait"], row["facet"], row["half"]) for row in rows_of(sample, split))
    for facet in FACETS:
        assert abs(counts[*facet, "dev"] - counts[*facet, "test"]) <= 1


def test_halves_are_the_whole(sample: QuestionSource) -> None:
    whole = {row["id"] for row in rows_of(sample, "evaluate", "neuroticism")}
    dev, test = ({row["id"] for row in rows_of(sample, "evaluate", "neuroticism", h)} for h in ("dev", "test"))
    assert dev
    assert test
    assert dev | test == whole
    assert not dev & test
    assert {row["half"] for row in rows_of(sample, "identify", None, "dev")} == {"dev"}


def test_all_traits_come_in_their_order(sample: QuestionSource) -> None:
    rows = rows_of(sample, "evaluate")
    assert tuple(dict.fromkeys(row["trait"] for row in rows)) == TRAIT_NAMES
    assert [row for row in rows if row["trait"] == "agreeableness"] == rows_of(sample, "evaluate", "agreeableness")
    with pytest.raises(ConfigurationError, match="did you mean 'openness'"):
        sample.questions("evaluate", "opennes")


def test_a_row_is_a_question_again(sample: QuestionSource) -> None:
    row = sample.questions("identify", "openness")[0]
    question = Question.from_row({**row, "another column": 1})
    assert {column: getattr(question, column) for column in COLUMNS} == row


# Ids and halves


def test_ids_are_those_of_every_earlier_run(folder: Path) -> None:
    """Answers on disk are found again by id, so a change here would orphan them."""
    (folder / "test" / "Openness.json").write_text(
        lines([{"question": "What do you do?"}, {"question": "Und dann – ?"}])
    )
    assert [row["id"] for row in rows_of(FolderSource(folder), "evaluate", "openness")] == [
        "openness-e-a052a8a6fd21",
        "openness-e-9e9c9a195f4b",
    ]


def test_an_id_tells_trait_and_split_apart_and_copies_too(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(lines([{"question": "Why?"}] * 3 + [{"question": "How?"}]))
    ids = [
        question.id
        for split in ("evaluate", "identify")
        for name in ("openness", "neuroticism")
        for question in parse_questions(path, split, name)
    ]
    assert len(set(ids)) == len(ids) == 16


QUESTIONS = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=8).filter(str.strip), st.sampled_from(["", "Trust", "Morality", "Altruism"])
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda pair: pair[0],
)


@given(pairs=QUESTIONS, order=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_halves_are_even_in_every_facet_and_the_same_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], order: random.Random
) -> None:
    path = tmp_path_factory.getbasetemp() / "halves.json"
    rows = [{"question": text, "tag": facet} for text, facet in pairs]
    path.write_text(lines(rows))
    first = parse_questions(path, "evaluate", "agreeableness")
    assert [question.question for question in first] == [text for text, _ in pairs], "the order of the file is kept"
    counts = Counter((question.facet, question.half) for question in first)
    for facet in {question.facet for question in first}:
        assert abs(counts[facet, "dev"] - counts[facet, "test"]) <= 1
    assert abs(sum(question.half == "dev" for question in first) - len(first) / 2) < 1
    order.shuffle(rows)
    path.write_text(lines(rows))
    assert set(parse_questions(path, "evaluate", "agreeableness")) == set(first)


def test_halves_do_not_follow_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(lines([{"question": f"Question {n}?"} for n in range(40)]))
    halves = [question.half for question in parse_questions(path, "evaluate", "openness")]
    assert halves != ["test", "dev"] * 20
    assert halves != ["test"] * 20 + ["dev"] * 20
    assert Counter(halves) == {"dev": 20, "test": 20}


# Sources


def test_both_sources_give_the_same_table(sample: QuestionSource, folder: Path) -> None:
    other = open_source("official", folder)
    assert other.name == "official"
    for split in ("evaluate", "identify"):
        ours, theirs = sample.questions(split), other.questions(split)
        assert tuple(ours.column_names) == COLUMNS
        assert ours.features == theirs.features
        assert all(isinstance(value, str) for row in theirs for value in row.values())
        assert len(theirs) == 25
    assert {len(texts) for texts in other.descriptions.values()} == {3}


def test_the_official_files_are_known_by_their_content(
    official_files: Path, tmp_path: Path, sample: QuestionSource, cache: Path
) -> None:
    data = tmp_path / "official"
    shutil.copytree(official_files / "evaluate", data / "test")
    shutil.copy(official_files / "description.json", data)
    source = open_source("official", data)
    assert source.revision == OfficialSource.revision
    table = source.questions("evaluate")
    assert table.features == sample.questions("evaluate").features
    assert len(table) == 459
    counts = Counter((row["trait"], row["half"]) for row in table)
    assert all(abs(counts[name, "dev"] - counts[name, "test"]) <= 1 for name in TRAIT_NAMES)
    assert min(len(texts) for texts in source.descriptions.values()) >= 79
    (data / "test" / "Openness.json").write_text(lines([{"question": "Mine?"}]))
    altered = open_source("official", data)
    assert altered.revision != OfficialSource.revision
    assert altered.revision.startswith("official:")


def test_a_revision_tells_folders_apart(folder: Path, sample: QuestionSource) -> None:
    first = FolderSource(folder).revision
    assert first == FolderSource(folder).revision
    with (folder / "search" / "Openness.json").open("a") as stream:
        stream.write(lines([{"question": "Another?"}]))
    assert FolderSource(folder).revision != first
    assert sample.revision.startswith("sample:")


def test_where_the_official_data_come_from(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_source(), OfficialSource)
    monkeypatch.setenv("PERSONALITYBENCH_DATA", str(folder))
    source = open_source()
    assert source.path("test/Openness.json") == folder / "test" / "Openness.json"
    other = tmp_path / "other"
    shutil.copytree(folder, other / "NPTI" / "dataset")
    named = open_source("official", other)
    assert named.path("description.json") == other / "NPTI" / "dataset" / "description.json", "the option goes first"
    assert open_source("sample").name == "sample"
    assert open_source("sample").path("description.json").parent.name == "sample"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("official", "~/data").path("description.json") == folder / "description.json"


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="unknown question source 'oficial': did you mean 'official'"):
        open_source("oficial")


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"data folder .*nowhere does not exist"):
        open_source("official", tmp_path / "nowhere")
    monkeypatch.setenv("PERSONALITYBENCH_DATA", str(tmp_path / "neither"))
    with pytest.raises(DataError, match=r"data folder .*neither does not exist"):
        open_source()


def test_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "search" / "Extraversion.json").unlink()
    source = open_source("official", folder)
    with pytest.raises(DataError, match=r"search/Extraversion.json does not exist: .*needs test/, search/"):
        source.questions("identify")
    assert len(source.questions("evaluate")) == 25


# Files that are wrong


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no question: .*--data-dir"),
        ("\n  \n\n", "holds no question"),
        ('{"question": "One?"}\n{"text": "no question"}\n', "entry 2 has no text in 'question'"),
        ('{"question": "One?"}\n\n{"question": " "}\n', "entry 2 has no text in 'question'"),
        ('{"question": null}\n', "entry 1 has no text in 'question'"),
        ('{"question": 5}\n', "entry 1 has no text in 'question'"),
        ('{"question": "One?"}\n\n["Two?"]\n', ":3 is not a JSON object"),
        ('{"question": "One?"}\n{"question": "Tw', "is not JSON"),
        ('[\n{"question": "One?"}\n]\n', "is not JSON"),
    ],
)
def test_a_malformed_file_is_named(folder: Path, content: str, says: str) -> None:
    (folder / "test" / "Openness.json").write_text(content)
    with pytest.raises(DataError, match=rf"test/Openness\.json.*{says}") as caught:
        FolderSource(folder).questions("evaluate")
    assert "\n" not in str(caught.value)


def test_a_malformed_line_is_named_by_its_number(folder: Path) -> None:
    (folder / "test" / "Openness.json").write_text('{"question": "One?"}\n{"question": "Two?"}\nthree\n')
    with pytest.raises(DataError, match=r"Openness\.json:3 is not"):
        FolderSource(folder).questions("evaluate")


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "test" / "Openness.json").write_bytes(b'{"question": "caf\xe9?"}\n')
    with pytest.raises(DataError, match=r"Openness\.json.* is not JSON"):
        FolderSource(folder).questions("evaluate")


def test_a_target_without_description(folder: Path) -> None:
    rows = [{target.file_key: "You are you." for target in TARGETS if str(target) != "openness:low"}]
    (folder / "description.json").write_text(lines(rows))
    with pytest.raises(DataError, match=r"no description for openness:low \(key 'Openness_reversed'\)"):
        _ = FolderSource(folder).descriptions
    (folder / "description.json").unlink()
    with pytest.raises(DataError, match=r"description.json does not exist"):
        _ = FolderSource(folder).descriptions


@pytest.mark.parametrize("text", [None, 5, " "])
def test_a_description_without_text_is_refused(folder: Path, text: Any) -> None:
    rows = [{target.file_key: "You are you." for target in TARGETS}, {"Openness": text}]
    (folder / "description.json").write_text(lines(rows))
    with pytest.raises(DataError, match=r"description\.json.*Openness"):
        _ = FolderSource(folder).descriptions


def test_every_pinned_file_is_asked_for_by_its_path(folder: Path) -> None:
    present = {str(path.relative_to(folder)) for path in folder.rglob("*.json")}
    assert present == BLOB_IDS.keys(), "this folder has the layout of the pinned release, so all of it can be fetched"


# Derived tables


def table_folder(cache: Path) -> Path:
    (found,) = (cache / "tables").iterdir()
    return found


def test_a_table_is_derived_once_for_each_content(folder: Path, cache: Path) -> None:
    source = FolderSource(folder)
    before = rows_of(source, "evaluate", "openness")
    stored = table_folder(cache)
    inode = (stored / "sha256").stat().st_ino
    assert rows_of(FolderSource(folder), "evaluate", "openness") == before
    assert (table_folder(cache) / "sha256").stat().st_ino == inode, "read, not written again"
    (folder / "test" / "Openness.json").write_text(lines([{"question": "Only this?"}]))
    assert [row["question"] for row in rows_of(source, "evaluate", "openness")] == ["Only this?"]
    assert len(list((cache / "tables").iterdir())) == 2


def test_the_same_file_under_another_trait_is_another_table(folder: Path) -> None:
    shutil.copy(folder / "test" / "Openness.json", folder / "test" / "Extraversion.json")
    source = FolderSource(folder)
    assert {row["trait"] for row in rows_of(source, "evaluate", "openness")} == {"openness"}
    assert {row["trait"] for row in rows_of(source, "evaluate", "extraversion")} == {"extraversion"}


def _cut(stored: Path) -> None:
    path = stored / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-7])


def _flip(stored: Path) -> None:
    path = stored / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes().replace(b"question", b"answered", 1))


def _empty(stored: Path) -> None:
    shutil.rmtree(stored)
    stored.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_cut, id="cut"),
        pytest.param(_flip, id="altered"),
        pytest.param(_empty, id="empty"),
        pytest.param(lambda stored: (stored / "data-00000-of-00001.arrow").unlink(), id="no-table"),
        pytest.param(lambda stored: (stored / "sha256").unlink(), id="no-checksum"),
        pytest.param(lambda stored: (stored / "sha256").write_bytes(b"\xff\xfe"), id="checksum-is-no-text"),
        pytest.param(lambda stored: (stored / "state.json").unlink(), id="no-state"),
        pytest.param(lambda stored: (stored / "state.json").write_text(""), id="state-empty"),
        pytest.param(lambda stored: (stored / "dataset_info.json").write_text("{"), id="info-cut"),
    ],
)
def test_a_damaged_table_is_derived_again(folder: Path, cache: Path, damage: Callable[[Path], None]) -> None:
    source = FolderSource(folder)
    before = rows_of(source, "evaluate", "openness")
    stored = table_folder(cache)
    damage(stored)
    assert rows_of(source, "evaluate", "openness") == before
    assert table_folder(cache) == stored, "nothing else is left in the cache"
    assert (stored / "sha256").is_file()
