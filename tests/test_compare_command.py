"""``personalitybench judges compare``: answers from everywhere, ratings used, asked, kept, and frozen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("openai")

from personalitybench.errors import ConfigurationError, DataError
from personalitybench.judging.agreement.gold import gold_answers
from personalitybench.judging.agreement.human import read_ratings
from personalitybench.judging.agreement.table import Column, ComparedAnswer, RatingTable
from personalitybench.judging.agreement.table_files import read_table, write_table
from personalitybench.judging.base import Rating, create_judge
from personalitybench.runs.answer_sources import open_source, sample_answers
from personalitybench.runs.command import run_suite
from personalitybench.runs.compare_command import CompareOptions, compare_judges
from personalitybench.runs.comparison import Comparison
from personalitybench.runs.progress import RunProgress
from personalitybench.tasks import judge_fingerprint
from tests.chat_server import ChatServer, Fault
from tests.lm_eval_folders import made_up_answer, run_lm_eval
from tests.test_judge_command import JUDGE

pytestmark = pytest.mark.model


ANSWERED = """
name: small
models:
  - {{name: some-model, backend: local-chat-completions, args: {{base_url: "{url}/chat/completions"}}}}
methods: [none, {{name: few_shot, settings: {{examples: 1}}}}]
targets: ['extraversion:high', 'extraversion:low']
questions: {{source: sample, half: test, limit: 2}}
"""


@pytest.fixture(scope="module")
def made(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two methods on a served model, rated by the offline judge."""
    folder = tmp_path_factory.mktemp("runs")
    suite = folder / "small.yaml"
    with pytest.MonkeyPatch.context() as patch, ChatServer(answer=made_up_answer) as server:
        patch.setenv("OPENAI_API_KEY", "sk-not-a-key")
        suite.write_text(ANSWERED.format(url=server.url))
        run_suite(str(suite), folder / "run", (), Console(quiet=True))
    return folder / "run"


@pytest.fixture
def served(chat_server: ChatServer, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A judge behind a server whose rating tells when it was asked; the replies that it gave lie in an empty cache."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    chat_server.answer = lambda _: f"So it seems. [[{len(chat_server.requests) % 5 + 1}]]"
    path = tmp_path / "served.yaml"
    path.write_text(JUDGE.format(url=chat_server.url))
    create_judge.cache_clear()
    return str(path)


def progress() -> RunProgress:
    return RunProgress(Console(quiet=True))


def compare(*judges: str, answers: Path | str, **options: Any) -> RatingTable:
    """Build the table of ratings as the command does."""
    shown = progress()
    people = options.pop("people", [])
    return Comparison(open_source(str(answers), shown), judges, people, shown, **options).rate()


def told(*judges: str, answers: Path | str, **options: Any) -> str:
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    compare_judges(CompareOptions(judges, str(answers), **options), console)
    return console.export_text()


def test_what_the_run_has_is_used_and_the_rest_is_asked_once(made: Path, chat_server: ChatServer, served: str) -> None:
    table = compare("offline", served, answers=made)
    assert [column.judge for column in table.columns] == ["offline", "served"]
    assert {answer.method for answer in table.answers} == {"none", "few_shot"}
    assert {answer.pole for answer in table.answers} == {"high", "low"}
    lines = [json.loads(line) for path in made.rglob("offline-*.jsonl") for line in path.read_text().splitlines()]
    own = sorted(row["trait"]["rating"] for row in lines)
    (offline,), (asked,) = (column.repeats for column in table.columns)
    assert {verdict.value for (_, aspect), verdict in offline.items() if aspect == "trait"} == set(own)
    assert set(asked) == set(offline) == {(a.id, aspect) for a in table.answers for aspect in ("trait", "fluency")}
    requests = len(chat_server.requests)
    assert requests
    assert compare("offline", served, answers=made) == table
    assert len(chat_server.requests) == requests
    (folder,) = (Path(os.environ["PERSONALITYBENCH_CACHE"]) / "judges" / "comparisons").iterdir()
    assert [path.name[:7] for path in folder.glob("*.jsonl")] == ["served-"], "offline's ratings lie in the run"


def test_repeats_are_asked_anew_and_kept(made: Path, chat_server: ChatServer, served: str) -> None:
    first = compare(served, answers=made)
    once = len(chat_server.requests)
    shown = progress()
    source = open_source(str(made), shown)
    comparison = Comparison(source, [served, "offline"], [], shown, repeats=2)
    assert {item.repeat for item in comparison.to_rate(served)} == {1}
    assert {item.repeat for item in comparison.to_rate("offline")} == {1}
    table = comparison.rate()
    assert len(chat_server.requests) == 2 * once
    asked, offline = (column.repeats for column in table.columns)
    assert asked[0] == first.columns[0].repeats[0]
    assert asked[1] != asked[0], "the server gives another rating each time"
    assert offline[0] == offline[1], "the offline judge does not"
    assert not [*comparison.to_rate(served), *comparison.to_rate("offline")]


def test_a_failure_of_the_server_is_not_kept(made: Path, chat_server: ChatServer, served: str) -> None:
    """What was unreachable is asked again by the same command; a refusal is the judge's own and stays."""
    profile = Path(served)
    profile.write_text(profile.read_text() + "client: {attempts: 1, concurrency: 1}\n")
    create_judge.cache_clear()
    reasons = []
    for fault in (Fault("500"), Fault("refusal"), None):
        chat_server.script.extend([fault] if fault else [])
        (column,) = compare(served, answers=made).columns
        reasons.append({v.reason for v in column.repeats[0].values() if not isinstance(v, Rating)})
        assert not chat_server.script
    assert reasons == [{"unreachable"}, {"refused"}, {"refused"}]


def test_answers_of_lm_eval(tmp_path: Path, made: Path) -> None:
    """The same reading of answers, from lm-eval's files; methods of two models carry their models' names."""
    run_lm_eval(tmp_path, {"out": {"method": "simple", "judge": None}})
    table = compare("offline", answers=tmp_path / "out")
    assert {(answer.method, answer.trait) for answer in table.answers} == {("simple", "extraversion")}
    assert len(table.answers) == 4
    shutil.copytree(tmp_path / "out", tmp_path / "out" / "second")
    results = next((tmp_path / "out" / "second").rglob("results_*.json"))
    results.write_text(results.read_text().replace("some-model", "their/other-model"))
    source = open_source(str(tmp_path / "out"), progress())
    assert {answer.method for answer in source.answers} == {"some-model simple", "other-model simple"}


def test_gold_texts() -> None:
    answers = list(gold_answers())
    assert len({answer.id for answer in answers}) == len(answers) > 1000
    assert {answer.pole for answer in answers} == {"high", "low", "neutral"}
    assert all(answer.question and answer.answer and answer.question_id.startswith(answer.trait) for answer in answers)
    few = sample_answers(answers, 3)
    assert len(few) == 3 * 5 * 3
    assert few == [answer for answer in answers if answer in few], "in their order"
    assert set(few) < set(sample_answers(answers, 4))
    groups: dict[tuple[str, str], list[str]] = {}
    for answer in few:
        groups.setdefault((answer.trait, answer.pole), []).append(answer.question_id)
    assert all(len(set(questions)) == 3 for questions in groups.values()), "of different questions"
    assert len({tuple(sorted(found)) for (trait, _), found in groups.items() if trait == "openness"}) == 1, "the same"


def test_people_and_the_sample(made: Path, tmp_path: Path) -> None:
    """What is exported is what is compared; ratings of other answers of the run are passed over."""
    told(answers=made, export=tmp_path / "rate.csv", sample=1)
    rows = (tmp_path / "rate.csv").read_text(encoding="utf-8-sig").splitlines()
    source = open_source(str(made), progress())
    filled = tmp_path / "anna.csv"
    lines = [f"answer-{answer.id};anna;{4 - place % 2};5" for place, answer in enumerate(source.answers)]
    filled.write_text("\n".join(["id;rater;trait_rating;fluency_rating", *lines]))
    people = read_ratings([filled], source.answers)
    table = compare("offline", answers=made, people=people, sample=1)
    assert len(table.answers) == 4
    assert all(any(answer.id in row for row in rows) for answer in table.answers)
    assert "1 answers of each method and target" in table.source
    offline, anna = table.columns
    assert anna.judge == "human:anna"
    assert (
        set(anna.repeats[0])
        == set(offline.repeats[0])
        == {(a.id, b) for a in table.answers for b in ("trait", "fluency")}
    )
    alone = compare(answers=made, people=people)
    assert [column.judge for column in alone.columns] == ["human:anna"]


def test_frozen_ratings_are_compared_with_though_their_judge_is_gone(tmp_path: Path) -> None:
    answers = [
        ComparedAnswer(f"q{n}", "What now?", f"I go out {n} times.", "extraversion", "high", "p2") for n in range(3)
    ]
    gone = Column("gone", {"id": "gone"}, [{(answer.id, "trait"): Rating(2.0) for answer in answers}])
    stale = Column("offline", {"id": "offline"}, [{(answers[0].id, "trait"): Rating(5.0)}])
    path = tmp_path / "ratings.jsonl"
    write_table(RatingTable("run long ago", answers, [gone, stale]), path)
    assert compare(answers=path) == read_table(path)
    assert compare("gone", "offline", answers=path).columns[1] == stale, "what is frozen under that name"
    other = tmp_path / "other.yaml"
    other.write_text("{id: other, provider: offline, summary: x, settings: {heads: offline/heads.safetensors}}")
    shown = progress()
    comparison = Comparison(open_source(str(path), shown), ["gone", str(other)], [], shown)
    assert comparison.asked == [str(other)]
    first, second = comparison.rate().columns
    assert first == gone
    assert second.identity == judge_fingerprint(str(other))
    assert len(second.repeats[0]) == 6
    said = told("gone", "offline", answers=path, dry_run=True)
    assert "offline: the frozen ratings are compared; another version of its profile made them" in said
    assert "offline: its ratings are frozen there, too" in told("gone", answers=path, dry_run=True)


def test_what_cannot_be_compared_is_told_before_anything_is_asked(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'offline' is there twice"):
        compare("offline", "offline", answers=made)
    with pytest.raises(ConfigurationError, match="there is nobody to compare"):
        compare(answers=made)
    with pytest.raises(ConfigurationError, match="unknown judge 'ofline': did you mean 'offline'"):
        compare("ofline", answers=made)
    with pytest.raises(DataError, match=r"ratings\.jsonl does not exist"):
        compare("offline", answers=tmp_path / "ratings.jsonl")


def test_the_command_tells_what_it_would_take(
    made: Path, command: Callable[..., Any], served: str, chat_server: ChatServer
) -> None:
    done = command("judges", "compare", "offline", served, "--answers", str(made), "--repeats", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    counts = {row[0].rpartition("/")[2]: row[1] for row in rows if row[1].isdigit()}
    assert list(counts.values()) == ["16", "32"], done.stdout
    assert not chat_server.requests
    refused = command("judges", "compare", served, "--answers", str(made), "--budget", "1")
    assert refused.returncode == 2
    assert "no price of its model is known" in refused.stderr
