"""Questions and persona descriptions: where the way of the data begins.

Two sources give the same columns: ``official`` (the paper's files, pinned and verified, or a local folder with
the same layout) and ``sample`` (written for this project, bundled, so that everything runs offline).

One line of an evaluation file: ``{"question": "You have found ... What do you do?"}``; identification files
may add ``BFI`` (trait), ``tag`` (facet), ``facet`` (the IPIP item), ``topic`` and ``sign`` (keying of the item).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import datasets

from personalitybench import downloads
from personalitybench.dry import is_dry
from personalitybench.errors import ConfigurationError, DataError, NotHereError, unknown_name
from personalitybench.files import cache_folder, content_hash, git_blob_id, named_folder, sha256_file
from personalitybench.outside_files import MAX_JSON_BYTES, UnreadableError, parse_json, read_text
from personalitybench.resources import bundled
from personalitybench.temporaries import find_abandoned, remove_abandoned, temporary_folder
from personalitybench.traits import TARGETS, TRAIT_NAMES, Target, trait

Split = Literal["identify", "evaluate"]
Half = Literal["dev", "test", "all"]

DATA_VARIABLE = "PERSONALITYBENCH_DATA"
SOURCES = ("official", "sample")
COLUMNS = ("id", "split", "trait", "facet", "item", "topic", "keying", "half", "question")

_FOLDERS: dict[Split, str] = {"evaluate": "test", "identify": "search"}
_DESCRIPTIONS = "description.json"
_OFFICIAL_PREFIX = "NPTI/dataset"
_DATASET_FORMAT = "1"  # raise when the table derived from a file changes, so that old caches are passed over

# Git blob ids of the pinned release, by path below NPTI/dataset.
BLOB_IDS: dict[str, str] = {
    "description.json": "6ac7f815bde3a7e3ec2f82b03cea5523a97597c3",
    "test/Agreeableness.json": "4ab927114baae5becf6eda4017a1691d9b2f89bb",
    "test/Conscientiousness.json": "230d20826eba12dd1f57a33fe3894515216c95e5",
    "test/Extraversion.json": "baac2db20d760fea24d2b0e5f02e7b4e9b82e8ab",
    "test/Neuroticism.json": "b760c5a830853d07942d3b7e729e9f10fb36dbcb",
    "test/Openness.json": "cb8cd29fa6f0c1455b6c82a15cbd820a7aadb974",
    "search/Agreeableness.json": "0a7774d7209fc1bc7ad9b5e676d10bb159ae6642",
    "search/Conscientiousness.json": "c9d8bd6191cff9e918244a1e520a4bd83531519a",
    "search/Extraversion.json": "f425b330ff81171037f988ceb2da6455ef0e79c1",
    "search/Neuroticism.json": "eac0228380b546e0b3b4da5bd85b231716612e8b",
    "search/Openness.json": "a53f3b04ef4337243cea226d9820ad20bfa8961b",
}


@dataclass(frozen=True)
class Question:
    """A situational question.

    Attributes:
        id: Stable identity, made of the trait, the split and the text.
        split: ``identify`` or ``evaluate``.
        trait: The trait that it asks about.
        facet: Facet, or an empty string where the source does not say.
        item: The IPIP item that it was written for, or empty.
        topic: Topic, or empty.
        keying: ``+`` or ``-``: whether the item describes the high or the low pole; or empty.
        half: ``dev`` (strength is chosen here) or ``test`` (results are reported here).
        question: The text.
    """

    id: str
    split: str
    trait: str
    facet: str
    item: str
    topic: str
    keying: str
    half: str
    question: str

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Question:
        """Make a question of a row of the dataset (further columns are ignored)."""
        return cls(**{column: row[column] for column in COLUMNS})


class QuestionSource(ABC):
    """A place that questions and descriptions come from.

    Attributes:
        name: ``official`` or ``sample``.
    """

    name: str

    @abstractmethod
    def path(self, relative: str) -> Path:
        """Local path of a file, by its path below ``NPTI/dataset``; fetches it where needed.

        Raises:
            DataError: It is not to be had.
        """

    @property
    @abstractmethod
    def revision(self) -> str:
        """Which data these are: a pinned commit, a version, or a hash of the content."""

    def questions(self, split: Split, trait_name: str | None = None, half: Half = "all") -> datasets.Dataset:
        """Load questions.

        Args:
            split: ``evaluate`` or ``identify``.
            trait_name: One trait, or all five in their usual order.
            half: ``dev``, ``test`` or both.

        Returns:
            A table with the columns :data:`COLUMNS`, all strings.

        Raises:
            DataError: A file is missing, empty or malformed.
        """
        names = TRAIT_NAMES if trait_name is None else (trait(trait_name).name,)
        table = datasets.concatenate_datasets([self._table(split, name) for name in names])
        if half == "all":
            return table
        kept = [index for index, value in enumerate(table["half"]) if value == half]
        return table.select(kept)

    @cached_property
    def descriptions(self) -> dict[Target, list[str]]:
        """Second-person persona descriptions of each target (80 in the official data).

        Raises:
            DataError: The file is missing or a target has no description.
        """
        path = self.path(_DESCRIPTIONS)
        found: dict[Target, list[str]] = {target: [] for target in TARGETS}
        for number, row in enumerate(_read_lines(path), 1):
            for target in TARGETS:
                if target.file_key in row:
                    text = row[target.file_key]
                    if not isinstance(text, str) or not text.strip():
                        raise DataError(f"{path}: entry {number} has no text in {target.file_key!r}")
                    found[target].append(text)
        for target, texts in found.items():
            if not texts:
                raise DataError(f"{path} has no description for {target} (key {target.file_key!r})")
        return found

    def _table(self, split: Split, trait_name: str) -> datasets.Dataset:
        """One file as a memory-mapped table; derived once from the verified file, then read from the cache."""
        path = self.path(f"{_FOLDERS[split]}/{trait(trait_name).file_name}.json")
        folder = cache_folder("tables") / f"{split}-{trait_name}-{git_blob_id(path)[:16]}-v{_DATASET_FORMAT}"
        if not _is_intact(folder):
            if is_dry() or not os.access(folder.parent, os.W_OK):
                return as_table(parse_questions(path, split, trait_name))
            _write_table(parse_questions(path, split, trait_name), folder)
        return datasets.Dataset.from_file(str(folder / "data-00000-of-00001.arrow"))


class OfficialSource(QuestionSource):
    """The paper's questions from the pinned commit, downloaded on first use and verified at every use."""

    name = "official"
    revision = f"{downloads.REPOSITORY}@{downloads.COMMIT}"

    def path(self, relative: str) -> Path:
        """See :meth:`QuestionSource.path`."""
        return downloads.fetch_pinned(f"{_OFFICIAL_PREFIX}/{relative}", BLOB_IDS[relative])


class FolderSource(QuestionSource):
    """A local folder with the layout of ``NPTI/dataset`` (or that holds ``NPTI/dataset``)."""

    def __init__(self, folder: Path, name: str = "official") -> None:
        self.name = name
        nested = folder / _OFFICIAL_PREFIX
        self.folder = nested if nested.is_dir() else folder
        if not self.folder.is_dir():
            raise DataError(f"data folder {folder} does not exist: name one with test/, search/ and {_DESCRIPTIONS}")

    def path(self, relative: str) -> Path:
        """See :meth:`QuestionSource.path`."""
        path = self.folder / relative
        if not path.is_file():
            raise NotHereError(f"{path} does not exist: the data folder needs test/, search/ and {_DESCRIPTIONS}")
        return path

    @cached_property
    def revision(self) -> str:
        """The pinned commit where every file present has its pinned content, else a hash of the files."""
        found = {
            relative: git_blob_id(self.folder / relative)
            for relative in sorted(BLOB_IDS)
            if (self.folder / relative).is_file()
        }
        if found and all(BLOB_IDS[relative] == blob for relative, blob in found.items()):
            return OfficialSource.revision
        return f"{self.name}:{content_hash(found)[:16]}"


def open_source(name: str = "official", data_dir: str | os.PathLike[str] | None = None) -> QuestionSource:
    """Open a source of questions.

    Args:
        name: ``official`` or ``sample``.
        data_dir: For ``official``, a local folder instead of the download; by default what the environment
            variable ``PERSONALITYBENCH_DATA`` names, if it is set.

    Raises:
        ConfigurationError: No such source, or a folder for the sample.
        DataError: The folder does not exist.
    """
    if name not in SOURCES:
        raise unknown_name("question source", name, SOURCES)
    if name == "sample":
        if data_dir:
            raise ConfigurationError(
                f"data folder {data_dir} is for the official questions, but these are the sample's: "
                "ask for source 'official'"
            )
        return FolderSource(bundled("tasks", "sample"), name="sample")
    if data_dir:
        is_variable = str(data_dir) == os.environ.get(DATA_VARIABLE)
        return FolderSource(named_folder(str(data_dir), DATA_VARIABLE if is_variable else "--data-dir"))
    folder = os.environ.get(DATA_VARIABLE)
    return FolderSource(named_folder(folder, DATA_VARIABLE)) if folder else OfficialSource()


def shared_source(name: str, data_dir: str | None = None) -> QuestionSource:
    """Open a source once for a process, so that its files are hashed and its descriptions read once."""
    named = os.environ.get(DATA_VARIABLE) if name == "official" else None
    return _shared_source(name, data_dir or named)


@lru_cache(maxsize=16)
def _shared_source(name: str, data_dir: str | None) -> QuestionSource:
    return open_source(name, data_dir)


def parse_questions(path: Path, split: Split, trait_name: str) -> list[Question]:
    """Read one file of questions and give each an id and a half.

    Raises:
        DataError: The file holds no question, or a line is not an object with a ``question``.
    """
    questions: list[Question] = []
    seen: dict[str, int] = defaultdict(int)
    for number, row in enumerate(_read_lines(path), 1):
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}: entry {number} has no text in 'question'")
        identity = f"{trait_name}-{split[0]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        seen[identity] += 1
        if seen[identity] > 1:
            identity = f"{identity}-{seen[identity]}"
        questions.append(
            Question(
                id=identity,
                split=split,
                trait=trait_name,
                facet=str(row.get("tag") or "").lower(),
                item=str(row.get("facet") or ""),
                topic=str(row.get("topic") or ""),
                keying=str(row.get("sign") or ""),
                half="",
                question=text,
            )
        )
    if not questions:
        raise DataError(f"{path} holds no question: fetch it again or name another folder with --data-dir")
    return _split_halves(questions)


def _split_halves(questions: Sequence[Question]) -> list[Question]:
    """Deal the questions of a trait alternately to the two halves, in the order of their hashed ids.

    Where facets are known they are dealt one after the other, so both halves hold as much of each.
    """
    order = sorted(questions, key=lambda q: (q.facet, hashlib.sha256(f"half:{q.id}".encode()).digest()))
    halves = {question.id: ("test", "dev")[index % 2] for index, question in enumerate(order)}
    return [replace(question, half=halves[question.id]) for question in questions]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; blank lines are passed over."""
    rows = []
    try:
        text = read_text(path, MAX_JSON_BYTES)
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{number} is not JSON lines in UTF-8 ({error.reason}, byte {error.start})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnreadableError as error:
        raise DataError(f"{path} {error}: name another file") from error
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, unique=True)
        except ValueError as error:
            raise DataError(f"{path}:{number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number} is not a JSON object")
        rows.append(row)
    return rows


def _is_intact(folder: Path) -> bool:
    """Whether a derived table is complete: its checksum file is written last and matches."""
    checksum = folder / "sha256"
    table = folder / "data-00000-of-00001.arrow"
    return checksum.is_file() and table.is_file() and checksum.read_bytes() == sha256_file(table).encode()


def as_table(questions: Sequence[Question]) -> datasets.Dataset:
    """Questions as a table in memory, with the columns :data:`COLUMNS`."""
    columns = {column: [getattr(question, column) for question in questions] for column in COLUMNS}
    return datasets.Dataset.from_dict(columns)


def _write_table(questions: Sequence[Question], folder: Path) -> None:
    """Write a derived table beside its final place and rename it there; whoever comes second keeps the first's."""
    remove_abandoned(find_abandoned(folder.parent, folder.name))
    try:
        datasets.disable_progress_bars()
        with temporary_folder(folder) as temporary:
            as_table(questions).save_to_disk(str(temporary), num_shards=1)
            (temporary / "sha256").write_text(sha256_file(temporary / "data-00000-of-00001.arrow"))
            if folder.exists():  # left by an older version or damaged
                shutil.rmtree(folder, ignore_errors=True)
            try:
                temporary.rename(folder)
            except OSError:
                if not _is_intact(folder):
                    raise
    except OSError as error:
        raise DataError(f"cannot write the table {folder} ({error.strerror})") from error
    finally:
        datasets.enable_progress_bars()
