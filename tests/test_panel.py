"""A panel of judges: what is combined and kept, who pays, and what it refuses; members are real judges."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from personalitybench.errors import ConfigurationError, JudgeError
from personalitybench.judging import FLUENCY, Rating, RatingRequest, Unrated, rate_all, verdict_from_json
from personalitybench.judging.base import Judge, create_judge
from personalitybench.judging.paid import PaidJudge, describe_spending, paid_judges, share_budget
from personalitybench.judging.prices import Price
from tests.chat_server import ChatServer, Fault

pytestmark = pytest.mark.usefixtures("cache")

ITEMS = [RatingRequest("What now?", f"Answer number {number}.", "openness") for number in range(6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_server: ChatServer) -> Path:
    """Three judges behind one server, each by a model's name that says what it rates."""
    monkeypatch.setenv("PERSONALITYBENCH_JUDGES", str(tmp_path))
    chat_server.answer = lambda body: f"By {body['model']}. [[{body['model'][-1]}]]"
    for name in ("rates-1", "rates-4", "rates-5"):
        settings = {"model": name, "base_url": chat_server.url}
        profile = {"id": name, "provider": "chat", "summary": "for tests", "settings": settings}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(profile))
    create_judge.cache_clear()
    return tmp_path


@pytest.fixture
def panel(folder: Path) -> Callable[..., Judge]:
    def make(judges: Sequence[str] = ("rates-1", "rates-4", "rates-5"), name: str = "three", **settings: Any) -> Judge:
        profile = {"id": name, "provider": "panel", "summary": "for tests"}
        (folder / f"{name}.yaml").write_text(json.dumps(profile | {"settings": {"judges": list(judges), **settings}}))
        create_judge.cache_clear()
        return create_judge(name)

    return make


def test_the_mean_of_the_members_and_what_each_said(panel: Callable[..., Judge]) -> None:
    (verdict,) = rate_all(panel(), ITEMS[:1])
    assert isinstance(verdict, Rating)
    assert verdict.value == pytest.approx(10 / 3, abs=1e-4)
    assert verdict.basis["spread"] == 4.0
    assert verdict.basis["sd"] == pytest.approx(1.6997, abs=1e-4)
    said = {"rating": 5.0, "explanation": "By rates-5.", "model": "rates-5-as-served"}
    assert verdict.basis["members"]["rates-5"] == said
    assert verdict_from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    hash(verdict)


def test_the_median(panel: Callable[..., Judge]) -> None:
    (verdict,) = rate_all(panel(combine="median"), ITEMS[:1])
    assert isinstance(verdict, Rating)
    assert verdict.value == 4.0


@pytest.mark.parametrize(("settings", "value"), [({}, None), ({"at_least": 2}, 3.0), ({"at_least": 3}, None)])
def test_a_member_that_does_not_rate(
    panel: Callable[..., Judge], chat_server: ChatServer, settings: dict[str, Any], value: float | None
) -> None:
    chat_server.rule = lambda body, _: Fault("refusal") if body["model"] == "rates-4" else None
    (verdict,) = rate_all(panel(**settings), ITEMS[:1])
    if value is not None:
        assert isinstance(verdict, Rating)
        assert verdict.value == value
        assert verdict.basis["members"]["rates-4"]["unrated"] == "refused"
    else:
        assert isinstance(verdict, Unrated)
        assert verdict.reason == "too-few-ratings"
        assert verdict.detail == "2 of 3 rated, 3 must (rates-1: 1; rates-4: refused; rates-5: 5)"


def test_an_answer_without_a_word_is_no_disagreement(panel: Callable[..., Judge], chat_server: ChatServer) -> None:
    (verdict,) = rate_all(panel(), [RatingRequest("?", " …", FLUENCY)])
    assert isinstance(verdict, Unrated)
    assert verdict.reason == "empty_answer"
    assert not chat_server.requests


def test_members_work_at_the_same_time_and_an_item_counts_with_the_last(
    panel: Callable[..., Judge], chat_server: ChatServer
) -> None:
    seen: list[tuple[int, set[str]]] = []

    def report(more: int) -> None:
        seen.append((more, {request.body["model"] for request in chat_server.requests}))

    chat_server.latency = 0.05
    verdicts = rate_all(panel(), ITEMS, report)
    assert len(verdicts) == len(ITEMS)
    assert chat_server.most_in_flight > len(ITEMS), "one member alone has six in flight"
    assert sum(more for more, _ in seen) == len(ITEMS)
    assert len(seen[0][1]) == 3, "nothing is done before every member was asked"


@pytest.mark.model
def test_a_member_that_computes_holds_up_no_other(
    panel: Callable[..., Judge], chat_server: ChatServer, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONALITYBENCH_CACHE", str(demo_model.parent.parent))
    judge = panel(["offline", "rates-4"])
    ticks = 0

    async def rate() -> Sequence[Any]:
        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        beside = asyncio.create_task(tick())
        try:
            return await judge.rate(ITEMS)
        finally:
            beside.cancel()

    verdicts = asyncio.run(rate())
    assert all(isinstance(verdict, Rating) for verdict in verdicts)
    assert ticks > 10, "the loop went on while the offline judge computed"
    assert judge.at_a_time == 8
    assert list(paid_judges(judge)) == ["three > rates-4"]


def test_an_error_of_one_ends_the_others_and_what_they_paid_is_kept(
    panel: Callable[..., Judge], chat_server: ChatServer
) -> None:
    chat_server.latency = 0.01
    paid = sum(isinstance(verdict, Rating) for verdict in rate_all(create_judge_named("rates-1"), ITEMS))
    chat_server.rule = lambda body, _: Fault("401") if body["model"] == "rates-5" else None
    with pytest.raises(JudgeError, match="the key in OPENAI_API_KEY is missing or wrong"):
        rate_all(panel(), ITEMS)
    before = sum(request.body["model"] == "rates-1" for request in chat_server.requests)
    assert before == paid == len(ITEMS)
    chat_server.rule = lambda *_: None
    assert all(isinstance(verdict, Rating) for verdict in rate_all(panel(), ITEMS))


def create_judge_named(name: str) -> Judge:
    create_judge.cache_clear()
    return create_judge(name)


def test_the_fingerprint_is_of_the_members(panel: Callable[..., Judge], folder: Path, chat_server: ChatServer) -> None:
    first = panel()
    assert panel().rubric_sha256 == first.rubric_sha256
    other = json.loads((folder / "rates-4.yaml").read_text())
    other["settings"]["sampling"] = {"temperature": 1}
    (folder / "rates-4.yaml").write_text(json.dumps(other))
    changed = panel()
    assert changed.profile.sha256 == first.profile.sha256
    assert changed.rubric_sha256 != first.rubric_sha256
    assert panel(combine="median").profile.sha256 != first.profile.sha256


def test_what_it_costs_is_seen_and_shared(panel: Callable[..., Judge], chat_server: ChatServer) -> None:
    inner = panel(["rates-4", "rates-5"], name="inner")
    assert list(paid_judges(inner)) == ["inner > rates-4", "inner > rates-5"]
    judge = panel(["inner", "rates-1"])
    found = paid_judges(judge)
    assert list(found) == ["three > inner > rates-4", "three > inner > rates-5", "three > rates-1"]
    assert not isinstance(judge, PaidJudge)
    with pytest.raises(ConfigurationError, match="judge three > inner > rates-4: no price of its model is known"):
        share_budget(judge, 1.0)
    for paid in found.values():
        paid.spending.price = Price(input=1000.0, output=0.0)
    assert [paid.estimate(ITEMS).calls for paid in found.values()] == [6, 6, 6]
    rate_all(judge, ITEMS[:1])
    one = sum(paid.spending.dollars or 0.0 for paid in found.values())
    assert one > 0
    told = describe_spending(judge)
    assert told.startswith("rates-4 $")
    assert ", rates-1 $" in told
    share_budget(judge, 3.5 * one)
    with pytest.raises(JudgeError, match=r"the budget of \$.* is spent \(the judges of the panel: \$"):
        rate_all(judge, [RatingRequest("?", f"Other {number}.", "openness") for number in range(200)])
    assert sum(paid.spending.calls for paid in found.values()) < 3 * 4 + 3 * 64


def test_a_budget_alone_is_ones_own(panel: Callable[..., Judge]) -> None:
    judge = create_judge_named("rates-1")
    assert list(paid_judges(judge)) == ["rates-1"]
    share_budget(judge, None)
    assert isinstance(judge, PaidJudge)
    assert not judge.spending.beside
    assert describe_spending(judge) == "0 tokens"


@pytest.mark.parametrize(
    ("judges", "settings", "says"),
    [
        (["rates-1"], {}, "judges: .*at least 2"),
        (["rates-1", "rates-1"], {}, "rates-1 is on the panel twice"),
        (["rates-1", "rates-4"], {"at_least": 3}, "'at_least' is 3, but there are 2 judges"),
        (["rates-1", "rates-4"], {"combine": "max"}, "combine"),
        (["rates-1", "rates-44"], {}, "unknown judge 'rates-44': did you mean 'rates-4'"),
        (["rates-1", "three"], {}, r"the panel is a member of itself \(three > three\)"),
    ],
)
def test_what_is_no_panel(panel: Callable[..., Judge], judges: list[str], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        panel(judges, **settings)


def test_panels_that_grow_exponentially_are_refused(panel: Callable[..., Judge], folder: Path) -> None:
    for depth in range(25):
        for side in "ab":
            settings = {"judges": [f"a{depth + 1}", f"b{depth + 1}"]}
            profile = {"id": f"{side}{depth}", "provider": "panel", "summary": "for tests", "settings": settings}
            (folder / f"{side}{depth}.yaml").write_text(json.dumps(profile))
    with pytest.raises(ConfigurationError, match=r"more than 2 deep \(three > a0 > a1\)"):
        panel(["a0", "b0"])
    with pytest.raises(ConfigurationError, match="at most 50"):
        panel([f"rates-{number}" for number in range(51)])


def test_a_panel_in_a_panel_must_not_hold_it(panel: Callable[..., Judge], folder: Path) -> None:
    settings = {"judges": ["three", "rates-1"]}
    loop = {"id": "other", "provider": "panel", "summary": "for tests", "settings": settings}
    (folder / "other.yaml").write_text(json.dumps(loop))
    with pytest.raises(ConfigurationError, match=r"member of itself \(three > other > three\)"):
        panel(["rates-4", "other"])
    assert panel(["rates-4", "rates-5"]), "the failure leaves nothing behind"


def test_the_bundled_example_is_made_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = paid_judges(create_judge("panel"))
    assert list(found) == ["panel > gpt-4o-2024-08-06", "panel > gpt-6-luna"]
    assert all(paid.spending.price is not None for paid in found.values()), "a budget can be kept"
