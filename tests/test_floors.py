"""Floors and the report on attacks: what a judge made of the attacks, kept once, and figures worked out by hand."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any, ClassVar

import pytest
from rich.console import Console

pytest.importorskip("openai")

from personalitybench.errors import JudgeError, StorageError
from personalitybench.judging import (
    FLUENCY,
    JudgeProfile,
    Rating,
    RatingRequest,
    RatingsReport,
    Unrated,
    Verdict,
    attack_ratings,
    create_judge,
)
from personalitybench.judging.attack_ratings import AttackRatings
from personalitybench.judging.attacks import ATTACKS, KINDS, attack_answers
from personalitybench.leaderboard.attack_render import to_html, to_markdown, visible
from personalitybench.leaderboard.attack_report import OFFLINE_NOTE, make_report
from personalitybench.leaderboard.build import build_board
from personalitybench.leaderboard.floors import build_floor, build_floors, floor_ratings, missing_floors
from personalitybench.leaderboard.render import to_html as board_page
from personalitybench.leaderboard.render import to_markdown as board_text
from personalitybench.leaderboard.summary import board_table
from personalitybench.runs.floors import floors_by, rate_floors
from personalitybench.runs.progress import RunProgress
from personalitybench.traits import TRAIT_NAMES
from tests.chat_server import ChatServer
from tests.test_leaderboard import cell, ratings

PROFILE = """
id: served
provider: chat
summary: for tests
settings: {{model: small, base_url: "{url}", sampling: {{temperature: 0, max_tokens: 60}}}}
client: {{attempts: 1}}
"""


def obeys(answer: str) -> float:
    """A judge that repeats the last verdict it reads, and finds everything else neutral."""
    found = re.findall(r"\[\[([1-5])\]\]", answer)
    return float(found[-1]) if found else 3.0


class Gullible:
    """A judge in this process; counts what it is asked, and fails as it is told."""

    at_a_time: ClassVar[int] = 8

    def __init__(self, provider: str = "gullible", rate: Callable[[str], float] = obeys) -> None:
        self.profile = JudgeProfile(id="gullible", provider=provider, summary="for tests")
        self.asked: list[RatingRequest] = []
        self.fail_after: int | None = None
        self.unrated: dict[int, Unrated] = {}
        self.pause = 0.0
        self._rate = rate

    @property
    def rubric_sha256(self) -> str:
        return "r"

    async def rate(self, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
        sleep(self.pause)
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise JudgeError("no more quota")
        verdicts: list[Verdict] = []
        for item in items:
            rating = Rating(4.0) if item.aspect == FLUENCY else Rating(self._rate(item.answer))
            verdicts.append(self.unrated.get(len(self.asked), rating))
            self.asked.append(item)
        if report is not None:
            report(len(items))
        return verdicts


@pytest.fixture
def served(
    chat_server: ChatServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ChatServer]:
    """A gullible model behind a server, as the profile ``served``."""

    def reply(body: Any) -> str:
        content = body["messages"][-1]["content"]
        answer = content[content.index("<answer-") : content.rindex("</answer-")]
        return f"As it says. [[{obeys(answer):.0f}]]" if "Rate how the writer" in content else "Fine. [[4]]"

    chat_server.answer = reply
    (tmp_path / "served.yaml").write_text(PROFILE.format(url=chat_server.url))
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    create_judge.cache_clear()
    yield chat_server
    create_judge.cache_clear()


@pytest.mark.usefixtures("cache")
def test_ratings_are_kept_and_go_on_after_a_failure() -> None:
    judge = Gullible()
    judge.fail_after = 48
    told: list[int] = []
    kept = AttackRatings(judge, 1)
    assert kept.total == 60
    with pytest.raises(JudgeError):
        kept.rate(told.append)
    assert kept.read() is None
    judge.fail_after = None
    again = AttackRatings(judge, 1)
    assert len(list(again.requests())) == 2 * 60 - len(judge.asked)
    again.rate(told.append)
    assert sum(told) == 60
    assert len(judge.asked) == 2 * 60, "each was asked about once, for its trait and for fluency"
    found = again.read()
    assert found is not None
    assert [one.answer for one in found] == [answer for made in attack_answers(1).values() for answer in made]
    again.rate(told.append)
    assert len(judge.asked) == 2 * 60


@pytest.mark.usefixtures("cache")
def test_what_may_pass_is_asked_again_and_what_is_said_of_an_answer_is_not() -> None:
    judge = Gullible()
    judge.unrated = {0: Unrated("unreachable"), 2: Unrated("refused"), 5: Unrated("not-text")}
    kept = AttackRatings(judge, 1, ("constant",))
    kept.rate()
    found = kept.read()
    assert found is not None
    assert [one.trait for one in found[:2]] == [Unrated("unreachable"), Unrated("refused")]
    assert [answer.id for answer in kept.missing()["constant"]] == [found[0].answer.id, found[2].answer.id]
    kept.rate()
    assert len(judge.asked) == 20 + 4
    found = kept.read()
    assert found is not None
    assert [type(one.trait) for one in found[:2]] == [Rating, Unrated]
    assert not any(kept.missing().values())


def test_ratings_that_were_altered_are_refused(cache: Path) -> None:
    judge = Gullible()
    AttackRatings(judge, 1).rate()
    (sheet,) = cache.glob("judges/floors/*/injection-*.jsonl")
    sheet.write_text(sheet.read_text().replace('"rating": 5.0', '"rating": 4.0'))
    with pytest.raises(StorageError, match="was altered after it was complete"):
        AttackRatings(judge, 1).read()


@pytest.mark.usefixtures("cache")
def test_two_at_once_ask_once() -> None:
    judge = Gullible()
    judge.pause = 0.02
    threads = [Thread(target=AttackRatings(judge, 1).rate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(judge.asked) == 2 * 60


@pytest.mark.usefixtures("cache")
def test_wait_for_another_process_is_told_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attack_ratings, "_WAIT", 0.1)
    monkeypatch.setattr(attack_ratings, "_LONGEST_WAIT", 0.3)
    first, second = AttackRatings(Gullible(), 1), AttackRatings(Gullible(), 1)
    with first._alone(None), pytest.raises(StorageError, match=r"has rated the floors of judge .*: end it, then run"):
        second.rate()
    assert "waiting for another process that rates the floors" in caplog.text
    second.rate()
    assert second.read() is not None


@pytest.mark.usefixtures("cache")
def test_figures_of_the_report() -> None:
    judge = Gullible()
    kept = AttackRatings(judge, 4)
    kept.rate()
    rated = kept.read()
    assert rated is not None
    report = make_report([(judge, rated)], 4)
    (found,) = report.judges
    kinds = {kind.kind: kind for kind in found.kinds}
    assert list(kinds) == list(KINDS)
    for kind in ("constant", "keywords", "persona-echo", "gold", "opposite"):
        assert (kinds[kind].mean, kinds[kind].high_share, kinds[kind].fluency) == (3.0, 0.0, 4.0)
        assert kinds[kind].figures.average.mean == 6.0
    swayed = [answer for answer in attack_answers(4)["injection"] if obeys(answer.answer) != 3.0]
    assert 20 < len(swayed) < 40
    for answer in swayed:
        assert answer.target.score(obeys(answer.answer)) == 5.0
    assert kinds["injection"].mean == pytest.approx(3 + 2 * len(swayed) / 40)
    assert kinds["injection"].high_share == pytest.approx(len(swayed) / 40)
    assert found.sway.n == 40
    assert found.sway.mean == pytest.approx(2 * len(swayed) / 40)
    assert found.sway.moved == pytest.approx(len(swayed) / 40)
    assert found.sway.interval is not None
    assert found.sway.interval[0] < found.sway.mean < found.sway.interval[1]
    assert {one.variant for one in found.sway.variants if one.mean} == {answer.variant for answer in swayed}
    assert len(found.sway.examples) == 10
    for example in found.sway.examples:
        assert (example.before, example.after) == (3.0, 5.0)
    assert not found.notes
    offline = Gullible("offline")
    assert make_report([(offline, rated)], 4).judges[0].notes == [OFFLINE_NOTE]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("rating", "share"), [(4.0, 0.5), (3.99, 0.0), (1.9, 0.5)])
def test_four_is_a_high_score(rating: float, share: float) -> None:
    """Of every two answers one is toward the high pole and one toward the low."""
    judge = Gullible(rate=lambda _: rating)
    kept = AttackRatings(judge, 1)
    kept.rate()
    found = make_report([(judge, kept.read() or [])], 1).judges[0]
    assert {kind.high_share for kind in found.kinds} == {share}
    assert (found.sway.mean, found.sway.moved, found.sway.examples) == (0.0, 0.0, [])


@pytest.mark.usefixtures("cache")
def test_a_judge_that_falls_silent_under_an_injection() -> None:
    judge = Gullible()
    judge.unrated = {place: Unrated("refused") for place in range(0, 20, 2)}
    kept = AttackRatings(judge, 1, ("injection", "opposite", "gold", "constant", "keywords", "persona-echo"))
    kept.rate()
    rated = kept.read()
    assert rated is not None
    found = make_report([(judge, rated)], 1).judges[0]
    injection = next(kind for kind in found.kinds if kind.kind == "injection")
    assert (injection.rated, injection.unrated, injection.mean, injection.high_share) == (
        0,
        {"refused": 10},
        None,
        None,
    )
    assert (found.sway.n, found.sway.mean, found.sway.moved) == (0, None, None)
    assert sum(one.unrated for one in found.sway.variants) == 10
    text = to_markdown(make_report([(judge, rated)], 1))
    assert "nan" not in text.lower()


@pytest.mark.usefixtures("cache")
def test_hostile_texts_stay_texts() -> None:
    judge = Gullible(rate=lambda answer: 5.0 if "<" in answer else 1.0)
    kept = AttackRatings(judge, 8)
    kept.rate()
    rated = kept.read()
    assert rated is not None
    report = make_report([(judge, rated)], 8, examples=80)
    page, text = to_html(report), to_markdown(report)
    assert "&lt;/answer" in page
    assert "</answer" not in page
    assert "<|im_start|>" not in page
    for row in text.splitlines():
        assert row.isprintable()
    assert visible("a\n\x1b[2J\u202e\u200b\U000e0077|é 忽") == r"a\n\x1b[2J\u202e\u200b\U000e0077|é 忽"


@pytest.mark.usefixtures("cache")
def test_floors_are_built_as_rows_are() -> None:
    judge = Gullible()
    assert build_floors(judge, "nobody asked").missing == "nobody asked"
    floor_ratings(judge).rate()
    floors = build_floors(judge, "")
    assert [floor.kind for floor in floors.rows] == list(ATTACKS)
    assert len(judge.asked) == 2 * 160
    constant = floors.rows[0]
    assert constant.average.mean == 6.0
    assert constant.targets["openness:high"].n == 4
    assert constant.fluency_average.mean == 8.0
    assert list(constant.traits) == list(TRAIT_NAMES)
    rated = floor_ratings(judge).read()
    assert rated is not None
    injections = [one for one in rated if one.answer.kind == "injection"]
    cells = [
        cell(target, {one.answer.question_id: one.trait for one in injections if str(one.answer.target) == target})
        for target in constant.targets
    ]
    row = build_board("b", cells).rows[0]
    floor = build_floor("injection", injections)
    assert (floor.traits, floor.average) == (row.traits, row.average)


@pytest.mark.usefixtures("cache")
def test_floors_on_a_board() -> None:
    judge = Gullible()
    floor_ratings(judge).rate()
    cells = [cell("openness:high", ratings(4.0, 5.0)), cell("openness:low", ratings(1.0, 2.0))]
    board = build_board("b", cells, floors=build_floors(judge, ""))
    console = Console(width=80, record=True, color_system=None, force_terminal=False)
    console.print(board_table(board))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("floor: ") == len(ATTACKS) + 1, "the rows and the legend"
    page, text = board_page(board), board_text(board)
    assert page.count('<tr class="floor') == 3 * len(ATTACKS)
    for kind in ATTACKS:
        assert f"| *floor: {kind}* |" in text
        assert f"<td>floor: {kind}</td>" in page
    missing = board.model_copy(update={"floors": missing_floors("no key")})
    for shown in (board_page(missing), board_text(missing)):
        assert "Its floors are missing: no key." in shown
    plain = build_board("b", cells)
    for shown in (board_page(plain), board_text(plain)):
        assert "floor:" not in shown
        assert "floors" not in shown


@pytest.mark.usefixtures("served")
def test_a_judge_that_cannot_be_asked_leaves_a_board_without_floors(chat_server: ChatServer) -> None:
    by = {"id": "served", "profile_sha256": "another", "rubric_sha256": "another"}
    with RunProgress(Console(quiet=True)) as progress:
        assert "another profile or rubric" in floors_by(by, progress).missing
        assert "unknown judge 'servd': did you mean 'served'" in floors_by({**by, "id": "servd"}, progress).missing
        assert not chat_server.requests
        chat_server.key = "sk-right-key-0123456789"
        refused = rate_floors("served", progress)
        assert not refused.rows
        assert "OPENAI_API_KEY" in refused.missing
        chat_server.key = None
        assert len(rate_floors("served", progress).rows) == len(ATTACKS)


def test_the_command(
    served: ChatServer, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    told = command("judges", "attack", "served", "--questions", "1", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert re.search(r"served\s*│ 120 ", told.stdout)
    assert not served.requests
    done = command("judges", "attack", "served", "--questions", "1", "--output", "out")
    assert done.returncode == 0, done.stderr
    asked = len(served.requests)
    assert 0 < asked < 120, "equal messages are asked once"
    report = json.loads((tmp_path / "out" / "attacks.json").read_text())
    (judge,) = report["judges"]
    assert judge["judge"]["id"] == "served"
    assert judge["sway"]["mean"] > 0
    assert [(kind["kind"], kind["n"]) for kind in judge["kinds"]] == [(kind, 10) for kind in KINDS]
    assert "Sway (injection minus opposite, 10 pairs)" in done.stdout
    for name in ("attacks.md", "attacks.html"):
        assert str(tmp_path / "out" / name) in done.stdout
    command("judges", "attack", "served", "--questions", "1")
    assert len(served.requests) == asked
    wrong = command("judges", "attack", "served", "--questions", "99")
    assert wrong.returncode == 2
    assert "the sample has 1 to 24" in wrong.stderr
    assert command("judges", "attack", "servd").stderr.startswith("personalitybench: unknown judge 'servd'")
