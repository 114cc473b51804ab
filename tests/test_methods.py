"""Our induction methods on the bundled sample: the same requests everywhere, and what they may not do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalitybench.errors import ConfigurationError
from personalitybench.methods import (
    Artifact,
    FitContext,
    Induction,
    InductionMethod,
    MethodContext,
    MethodSettings,
    create_method,
    methods,
)
from personalitybench.prompts import Wording, load_wording
from personalitybench.questions import FolderSource, Question, QuestionSource, open_source
from personalitybench.resources import bundled
from personalitybench.traits import TARGETS, Target

OURS = ("none", "simple", "p2", "few_shot")
HIGH = Target.parse("extraversion:high")
LOW = Target.parse("extraversion:low")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuestionSource]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_source("sample")


@pytest.fixture(scope="module")
def asked(source: QuestionSource) -> list[Question]:
    """All evaluation questions of the sample."""
    return [Question.from_row(row) for row in source.questions("evaluate")]


@pytest.fixture(scope="module")
def wording() -> Wording:
    """Templates of which one can tell which was used, and where everything ended up."""
    return Wording(
        name="test",
        plain="plain. [{question}]",
        simple="simple. <{personality}> [{question}]",
        p2="p2. <{personality}> [{question}]",
        few_shot="few_shot. <{examples}> [{question}]",
        identify="identify. <{personality}> [{question}]",
        adjectives={target: target.adjective for target in TARGETS},
    )


@pytest.fixture(scope="module")
def examples() -> dict[Target, dict[str, str]]:
    """Answers of the bundled examples by target and question."""
    found: dict[Target, dict[str, str]] = {}
    for line in bundled("tasks", "sample", "examples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(Target.parse(row["target"]), {})[row["question"]] = row["answer"]
    return found


@pytest.fixture
def context(source: QuestionSource, wording: Wording) -> MethodContext:
    return MethodContext(wording, source)


def inductions(method: InductionMethod, asked: list[Question]) -> dict[tuple[str, Target], Induction]:
    return {(question.id, target): method.induce(target, None, question) for question in asked for target in TARGETS}


# What holds for each


@pytest.mark.parametrize("name", OURS)
def test_the_same_requests_in_any_order_from_any_instance(
    name: str, context: MethodContext, asked: list[Question]
) -> None:
    method = create_method(name, {}, context)
    assert isinstance(method, InductionMethod)
    first = inductions(method, asked)
    assert inductions(method, asked[1::2] + asked[-2::-2]) == first
    fresh = create_method(name, {}, MethodContext(context.wording, open_source("sample"), context.seed))
    assert inductions(fresh, asked[5:7]) == {key: first[key] for key in first if key[0] in {q.id for q in asked[5:7]}}


@pytest.mark.parametrize("name", OURS)
def test_an_induction_is_plain_data(name: str, context: MethodContext, asked: list[Question]) -> None:
    method = create_method(name, {}, context)
    for target in TARGETS:
        found = method.induce(target, None, asked[0])
        written = json.loads(json.dumps(found.to_json()))
        assert written["target"] == str(target)
        assert Induction(**{**written, "target": Target.parse(written["target"])}) == found
        assert {found: 1}[method.induce(target, None, asked[0])] == 1
        assert found.method == name
        assert found.strength is None


@pytest.mark.parametrize("name", OURS)
def test_prompting_asks_nothing_more_of_a_backend(name: str, context: MethodContext, asked: list[Question]) -> None:
    method = create_method(name, {}, context)
    assert method.needs == frozenset()
    assert method.fit(FitContext("model", "name", "revision", context.source, context.wording, Path("nowhere"))) is None
    assert all(found.extra_args == {} for found in inductions(method, asked[:3]).values())


@pytest.mark.parametrize("name", OURS)
def test_prompts_in_the_projects_wording_are_complete(name: str, context: MethodContext, asked: list[Question]) -> None:
    method = create_method(name, {}, replace(context, wording=load_wording("project")))
    for question in asked:
        for target in TARGETS:
            prompt = method.induce(target, None, question).render(question.question)
            assert prompt.count(question.question) == 1
            assert "{" not in prompt
            assert "}" not in prompt


@pytest.mark.parametrize("name", OURS)
def test_braces_of_a_question_are_left_alone(name: str, context: MethodContext, asked: list[Question]) -> None:
    text = "Is {personality} in {question} and {examples} with {} or {{x}}?"
    prompt = create_method(name, {}, context).induce(HIGH, None, replace(asked[0], question=text)).render(text)
    assert prompt.count(text) == 1


@pytest.mark.parametrize("name", OURS)
def test_a_strength_is_refused(name: str, context: MethodContext) -> None:
    with pytest.raises(ConfigurationError, match=f"method '{name}' has no strength"):
        create_method(name, {}, context, strength=1.4)
    with pytest.raises(ConfigurationError, match=f"method '{name}' has no strength"):
        create_method(name, {}, context, strength=0.0)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("none", {"seed": 1}, "settings of method 'none': unknown key 'seed': there are none"),
        ("simple", {"adjective": "x"}, "settings of method 'simple': unknown key 'adjective'"),
        ("p2", {"release_code": True}, "settings of method 'p2': unknown key 'release_code': did you mean 'released_c"),
        ("p2", {"released_code": "perhaps"}, "released_code: .*boolean.*, not 'perhaps'"),
        ("few_shot", {"exampels": 2}, "unknown key 'exampels': did you mean 'examples'"),
        ("few_shot", {"examples": 0}, "examples: .*greater than or equal to 1, not 0"),
        ("few_shot", {"examples": 5}, "examples: .*less than or equal to 4, not 5"),
        ("few_shot", {"examples": 1.5}, "examples: .*integer.*, not 1.5"),
    ],
)
def test_a_wrong_setting_is_named(name: str, settings: dict[str, Any], says: str, context: MethodContext) -> None:
    with pytest.raises(ConfigurationError, match=says):
        create_method(name, settings, context)


def test_an_unknown_method_names_the_nearest(context: MethodContext) -> None:
    with pytest.raises(ConfigurationError, match="unknown method 'few-shot': did you mean 'few_shot'"):
        create_method("few-shot", {}, context)


# none and simple


def test_none_asks_both_poles_the_same(context: MethodContext, asked: list[Question]) -> None:
    method = create_method("none", {}, context)
    assert {method.induce(target, None, asked[0]).render("Why?") for target in TARGETS} == {"plain. [Why?]"}


def test_simple_names_the_adjective_of_the_target(context: MethodContext, asked: list[Question]) -> None:
    method = create_method("simple", {}, context)
    for target in TARGETS:
        assert method.induce(target, None, asked[0]).render("Why?") == f"simple. <{target.adjective}> [Why?]"


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_simple_in_the_projects_wording_names_no_other_adjective(
    target: Target, context: MethodContext, asked: list[Question]
) -> None:
    method = create_method("simple", {}, replace(context, wording=load_wording("project")))
    prompt = method.induce(target, None, asked[0]).render("Why?")
    assert [other for other in TARGETS if f" {other.adjective} " in prompt] == [target]


def test_simple_takes_the_adjectives_of_the_wording(context: MethodContext, asked: list[Question]) -> None:
    changed = replace(context.wording, adjectives={**context.wording.adjectives, LOW: "a silent"})
    method = create_method("simple", {}, replace(context, wording=changed))
    assert method.induce(LOW, None, asked[0]).render("Why?") == "simple. <a silent> [Why?]"
    assert method.induce(HIGH, None, asked[0]).render("Why?") == "simple. <an extraverted> [Why?]"


# p2


def test_p2_shows_one_description_of_the_target(context: MethodContext, asked: list[Question]) -> None:
    method = create_method("p2", {}, context)
    for (_, target), found in inductions(method, asked[:10]).items():
        assert found.description in context.source.descriptions[target]
        assert found.render("Why?") == f"p2. <{found.description}> [Why?]"


def test_p2_draws_for_each_question_and_with_the_seed(context: MethodContext, asked: list[Question]) -> None:
    def drawn(seed: int) -> list[str | None]:
        method = create_method("p2", {}, replace(context, seed=seed))
        return [method.induce(HIGH, None, question).description for question in asked]

    counts = Counter(drawn(0))
    assert counts.keys() == set(context.source.descriptions[HIGH]), "120 draws of 8 descriptions show each"
    assert max(counts.values()) < 40, "and none of them a third of the time"
    assert drawn(0) == drawn(0)
    same = sum(a == b for a, b in zip(drawn(0), drawn(1), strict=True))
    assert same < len(asked) / 2, "another seed, another draw: an eighth agrees by chance"


def test_p2_draws_the_same_when_the_text_but_not_the_id_changes(context: MethodContext, asked: list[Question]) -> None:
    method = create_method("p2", {}, context)
    other = replace(asked[0], question="Quite another text?", half="dev")
    assert method.induce(LOW, None, other) == method.induce(LOW, None, asked[0])


def test_p2_as_the_released_code_fills_the_template_for_adjectives(
    context: MethodContext, asked: list[Question]
) -> None:
    paper = create_method("p2", {}, context)
    released = create_method("p2", {"released_code": True}, context)
    for question in asked[:10]:
        found = released.induce(LOW, None, question)
        assert found.description == paper.induce(LOW, None, question).description, "the draw is the same"
        assert found.render("Why?") == f"simple. <{found.description}> [Why?]"


def test_p2_leaves_braces_of_a_description_alone(tmp_path: Path, context: MethodContext, asked: list[Question]) -> None:
    text = "You are {personality}, you love {question} marks and {}."
    (tmp_path / "description.json").write_text(json.dumps({target.file_key: text for target in TARGETS}) + "\n")
    method = create_method("p2", {}, replace(context, source=FolderSource(tmp_path)))
    prompt = method.induce(HIGH, None, asked[0]).render("Why {personality}?")
    assert prompt == f"p2. <{text}> [Why {{personality}}?]"


# few_shot


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_shot_shows_as_many_examples_of_the_target_as_set(
    count: int, context: MethodContext, asked: list[Question], examples: dict[Target, dict[str, str]]
) -> None:
    method = create_method("few_shot", {"examples": count}, context)
    for (_, target), found in inductions(method, asked[:10]).items():
        shown = found.render("Why?").removeprefix("few_shot. <").removesuffix("> [Why?]").split("\n\n")
        pool = {f"Question: {question}\nAnswer: {answer}" for question, answer in examples[target].items()}
        assert len(set(shown)) == len(shown) == count
        assert set(shown) <= pool


def test_few_shot_shows_two_unless_told(context: MethodContext, asked: list[Question]) -> None:
    default = create_method("few_shot", {}, context)
    two = create_method("few_shot", {"examples": 2}, context)
    assert default.induce(HIGH, None, asked[0]) == two.induce(HIGH, None, asked[0])


def test_few_shot_draws_for_each_question_and_with_the_seed(context: MethodContext, asked: list[Question]) -> None:
    def drawn(seed: int, count: int = 2) -> list[str]:
        method = create_method("few_shot", {"examples": count}, replace(context, seed=seed))
        return [str(method.induce(HIGH, None, question).description) for question in asked]

    assert len(set(drawn(0))) == 12, "120 draws of 2 of 4 in order show every pair in both orders"
    assert len(set(drawn(0, 4))) > 12, "the order is drawn too"
    assert drawn(0) == drawn(0)
    assert sum(a == b for a, b in zip(drawn(0), drawn(1), strict=True)) < len(asked) / 3


def test_examples_never_answer_an_evaluation_question(
    context: MethodContext, asked: list[Question], examples: dict[Target, dict[str, str]]
) -> None:
    evaluated = {question.question for question in asked}
    identified = set(context.source.questions("identify")["question"])
    for target, answers in examples.items():
        assert answers.keys() <= identified
        assert not answers.keys() & evaluated
        assert len(set(answers.values())) == len(answers) >= 4, target
    assert examples.keys() == set(TARGETS)


def test_examples_never_answer_an_official_question(
    official_files: Path, examples: dict[Target, dict[str, str]]
) -> None:
    official = {
        json.loads(line)["question"]
        for path in (official_files / "evaluate").glob("*.json")
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    assert len(official) > 400
    assert not official & {question for answers in examples.values() for question in answers}


# The contract


@given(seed=st.integers(), key=st.text(), count=st.integers(1, 1000), about=st.lists(st.text(), max_size=3))
def test_a_draw_is_in_range_and_repeats(seed: int, key: str, count: int, about: list[str]) -> None:
    one, two = (MethodContext(load_wording("project"), OpenedLater(), seed) for _ in range(2))
    drawn = one.draw(key, count, *about)
    assert 0 <= drawn < count
    assert two.draw("something in between", 7) < 7
    assert two.draw(key, count, *about) == drawn


class OpenedLater(QuestionSource):
    """Nothing reads it: a draw needs no data."""

    name = "later"
    revision = "0"

    def path(self, relative: str) -> Path:
        raise AssertionError(relative)


class Steering:
    """A method of another package: with a strength, and with more than a prompt."""

    summary: ClassVar[str] = "steer"
    version: ClassVar[str] = "1"
    needs: ClassVar[frozenset[Any]] = frozenset({"intervention"})
    has_strength: ClassVar[bool] = True
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: MethodSettings, context: MethodContext) -> None:
        self.settings = settings
        self.context = context

    def fit(self, context: FitContext) -> Artifact | None:
        return None

    def induce(self, target: Target, strength: float | None, question: Question) -> Induction:
        return Induction("steer", target, strength, self.context.wording.plain, intervention="/a/folder")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_registered", dict(methods._registered))


@pytest.mark.usefixtures("registered")
def test_a_method_with_a_strength_hands_it_to_the_backend(context: MethodContext, asked: list[Question]) -> None:
    methods.register("steer")(Steering)
    assert "steer" in methods.names()
    method = create_method("steer", {}, context, strength=1.4)
    found = method.induce(HIGH, 1.4, asked[0])
    assert found.extra_args == {"intervention": "/a/folder", "strength": 1.4}
    assert found != method.induce(HIGH, 1.5, asked[0])


@pytest.mark.usefixtures("registered")
def test_a_class_that_is_no_method_is_told_what_it_lacks(context: MethodContext) -> None:
    class Half:
        version = "1"
        needs: ClassVar[frozenset[str]] = frozenset()

    methods.register("half")(Half)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="method 'half' lacks has_strength, Settings, induce"):
        create_method("half", {}, context)


def test_an_artifact_is_its_names_and_contents(tmp_path: Path) -> None:
    def artifact(name: str, files: dict[str, bytes]) -> str:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return Artifact.open(tmp_path / name).sha256

    files = {"b.json": b"{}", "deep/a.safetensors": b"\x00\x01"}
    first = artifact("one", files)
    assert artifact("two", dict(reversed(files.items()))) == first
    assert artifact("three", {**files, "b.json": b"[]"}) != first
    assert artifact("four", {"c.json": b"{}", "deep/a.safetensors": b"\x00\x01"}) != first
    assert artifact("five", {**files, "more": b""}) != first


def test_an_artifact_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    for name in ("empty", "missing"):
        with pytest.raises(ConfigurationError, match=f"artifact folder .*{name} is missing or empty: fit"):
            Artifact.open(tmp_path / name)
