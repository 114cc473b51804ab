"""``methods check``: what keeps the contract passes, and each defect is failed by the check that is about it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from personalitybench.checks import processes
from personalitybench.checks.results import Outcome, Result
from personalitybench.checks.settings_table import describe_settings
from personalitybench.checks.subject import Wanted
from personalitybench.checks.suite import CHECKS, run_checks
from personalitybench.checks.workshop import Workshop
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError
from personalitybench.methods import methods
from tests import plugins

TESTS = Path(__file__).parent
BROKEN = "personalitybench-broken"
sys.path.insert(0, str(TESTS / "broken_package" / "src"))

Command = Callable[..., subprocess.CompletedProcess[str]]

PROMPTING = [
    ("shapeless", "contract", "'needs' is ['adapter']: it must be a frozenset of 'adapter', 'intervention', or empty"),
    ("careless", "settings", "an unknown setting is accepted"),
    ("moody", "deterministic", "induce draws from the generator of random"),
    ("forgetful", "deterministic", "the induction's template differs when it is in another process"),
    ("misnamed", "serialisable", "method is 'personalitybench-broken/misnamed-v2': it must be the registered name"),
    ("odd", "serialisable", "the induction's keep is a float32, which is no plain data"),
    ("deaf", "strength", "strengths 1 and 2 ask the same of the model although has_strength is True"),
    ("silent", "question", "the prompt holds the question 0 times instead of once"),
]
FITTED = [
    ("greedy", "needs", "the induction asks for an intervention, which 'needs' does not declare"),
    ("lost", "needs", "'needs' declares intervention, which no induction asks for"),
    ("dated", "fit-repeats", "two fits under one seed differ in made.json"),
    ("unsteady", "fit-resumes", "a fit that was interrupted left other files"),
    ("messy", "fit-restores", "wrote or deleted outside of context.folder, context.work and context.shared: "),
    ("altering", "fit-restores", "torch's default dtype was torch.float32 and is torch.float64 after it"),
    ("idle", "model", "steering changed nothing"),
    ("sticky", "model", "after the method was fitted and asked, the model answers plain questions otherwise"),
]


def entry_points(package: str) -> dict[str, str]:
    """The methods of a package of ours, as its ``pyproject.toml`` declares them."""
    about = tomllib.loads((TESTS / package / "pyproject.toml").read_text())
    found: dict[str, str] = about["project"]["entry-points"]["personalitybench.methods"]
    return found


@pytest.fixture(scope="module", autouse=True)
def broken_methods() -> None:
    """Register the broken methods under the names that their entry points would have."""
    for point, place in entry_points("broken_package").items():
        module, _, name = place.partition(":")
        if f"{BROKEN}/{point}" not in methods.names():
            methods.register(f"{BROKEN}/{point}")(getattr(__import__(module, fromlist=[name]), name))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    if "forgetful" not in request.node.name:  # the one that only other processes tell
        monkeypatch.setattr(processes, "HASH_SEEDS", () if "tiny_model" in request.fixturenames else ("1",))
    yield
    fitted = sys.modules.get("personalitybench_broken.fitted")
    while fitted is not None and fitted.HOOKS:
        fitted.HOOKS.pop().remove()


def outcomes(results: list[Result]) -> dict[str, str]:
    return {result.check: str(result.outcome) for result in results}


def failures(results: list[Result]) -> dict[str, str]:
    assert [result.check for result in results] == [check.name for check in CHECKS]
    return {result.check: result.reason for result in results if result.outcome is Outcome.FAIL}


# What is broken


@pytest.mark.parametrize(("name", "check", "says"), PROMPTING, ids=[row[0] for row in PROMPTING])
def test_a_defect_of_a_prompting_method_is_found_by_its_check_alone(name: str, check: str, says: str) -> None:
    found = failures(run_checks(Wanted(f"{BROKEN}/{name}", model=None), keep_going=True))
    assert list(found) == [check]
    assert says in found[check]


@pytest.mark.model
@pytest.mark.parametrize(("name", "check", "says"), FITTED, ids=[row[0] for row in FITTED])
def test_a_defect_of_a_fit_is_found_by_its_check_alone(name: str, check: str, says: str, tiny_model: Path) -> None:
    found = failures(run_checks(Wanted(f"{BROKEN}/{name}", model=str(tiny_model)), keep_going=True))
    assert list(found) == [check]
    assert says in found[check]


def test_every_broken_method_is_tested() -> None:
    assert {row[0] for row in PROMPTING + FITTED} == entry_points("broken_package").keys()


def test_a_failure_ends_the_checks_unless_told_to_go_on() -> None:
    results = run_checks(Wanted(f"{BROKEN}/silent", model=None))
    assert outcomes(results)["serialisable"] == "pass"
    assert outcomes(results)["question"] == "fail"
    later = results[[result.check for result in results].index("question") + 1 :]
    assert {str(result.outcome) for result in later} == {"skip"}
    assert "--keep-going" in later[0].reason


class Hidden(plugins.InsistentDiary):
    """Uses a strength that it says it does not have."""

    has_strength: ClassVar[bool] = False

    def induce(self, target: Any, strength: float | None, question: Any) -> Any:
        return replace(super().induce(target, strength, question), method="hidden")


class Raising(plugins.InsistentDiary):
    """Raises from an own line where there is no strength."""

    def induce(self, target: Any, strength: float | None, question: Any) -> Any:
        if strength is None:
            raise ZeroDivisionError("no strength")
        return replace(super().induce(target, strength, question), method="raising")


class Loose(plugins.InsistentDiary):
    """Settings of which one may be anything."""

    class Settings(plugins.InsistentDiary.Settings):  # type: ignore[name-defined]
        anything: Any = None


@pytest.mark.parametrize(
    ("kind", "check", "says"),
    [
        (
            Raising,
            "strength",
            "without a strength, induce raised ZeroDivisionError: no strength (test_methods_check.py",
        ),
        (Hidden, "strength", "the strength changes the request although has_strength is False"),
        (Loose, "settings", "setting 'anything': a mapping, a list and a text are accepted"),
    ],
)
def test_the_reason_says_where_to_look(
    kind: Any, check: str, says: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = kind.__name__.lower()
    monkeypatch.setitem(methods._registered, name, kind)
    found = failures(run_checks(Wanted(name, model=None)))
    assert list(found) == [check]
    assert says in found[check]


# What is sound


@pytest.mark.parametrize("name", ["none", "simple", "p2", "few_shot", "insistent-example"])
def test_our_own_prompting_methods_keep_the_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "insistent-example":
        name = "personalitybench-example/insistent"
        monkeypatch.setitem(methods._registered, name, plugins.InsistentDiary)
    results = run_checks(Wanted(name))  # a model is named, and not looked for
    assert failures(results) == {}
    found = outcomes(results)
    assert found["poles"] == ("note" if name == "none" else "pass")
    assert [check for check, outcome in found.items() if outcome == "skip"] == ["fit-repeats", "fit-resumes", "model"]


@pytest.mark.model
def test_npti_keeps_the_contract(tiny_model: Path, cache: Path) -> None:
    results = run_checks(Wanted("npti", model=str(tiny_model), settings={"max_tokens": 4}, strength=1.4))
    assert failures(results) == {}
    assert set(outcomes(results).values()) == {"pass"}
    reasons = {result.check: result.reason for result in results}
    assert "tokens steered" in reasons["model"]
    assert "interrupted at reports 1, 2, " in reasons["fit-resumes"]
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["models", "official", "tables"]
    assert not any((cache / "models").iterdir())


@pytest.mark.model
@pytest.mark.parametrize("name", ["lora", "combined"])
def test_our_own_fitted_methods_keep_the_contract(name: str, tiny_model: Path) -> None:
    results = run_checks(Wanted(name, model=str(tiny_model)))
    assert failures(results) == {}
    assert set(outcomes(results).values()) == {"pass"}


def test_what_is_written_and_deleted_elsewhere_is_seen(tmp_path: Path, cache: Path) -> None:
    workshop = Workshop(tmp_path / "workshop")
    for folder in (workshop.root / "own", tmp_path / "elsewhere", cache):
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "file").write_text("kept")
    with workshop.watched():
        shutil.rmtree(workshop.root / "own")
        (workshop.root / "new").write_text("may be written")
        assert (cache / "below" / "file").read_text() == "kept"
    assert workshop.strays == []
    with workshop.watched():
        shutil.rmtree(tmp_path / "elsewhere")
        (cache / "below" / "file").rename(cache / "below" / "renamed")
        os.close(os.open(cache / "opened", os.O_CREAT | os.O_WRONLY))
    assert workshop.strays == sorted(map(str, [cache / "below" / "renamed", cache / "opened", tmp_path / "elsewhere"]))


def test_without_a_model_the_rest_says_why() -> None:
    results = {result.check: result for result in run_checks(Wanted("npti", model=None))}
    assert results["settings"].outcome is Outcome.PASS
    for name in ("fit", "serialisable", "fit-repeats", "fit-restores", "model"):
        assert results[name].outcome is Outcome.SKIP
        assert "--no-model was given" in results[name].reason


# What the user asked for wrongly


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        (Wanted("simpel"), ConfigurationError, "unknown method 'simpel': did you mean 'simple'"),
        (Wanted("few_shot", {"exampels": 2}), ConfigurationError, "unknown key 'exampels': did you mean 'examples'"),
        (Wanted("simple", strength=1.0), ConfigurationError, "method 'simple' has no strength"),
        (Wanted("npti", model="/nowhere"), ModelError, "model folder /nowhere does not exist"),
        (Wanted("npti", backend="hf"), NeedsNotMetError, "needs intervention, which backend 'hf' cannot do"),
    ],
)
def test_a_wrong_option_is_an_error_and_no_failure(wanted: Wanted, error: type[Exception], says: str) -> None:
    if wanted.name == "npti":
        pytest.importorskip("torch")
    with pytest.raises(error, match=says):
        run_checks(wanted)


# The command line


def installed(package: str, module: str, site: Path) -> str:
    """Put a package of ours on a path as pip would, its entry points with it."""
    name = package.replace("-", "_")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    points = "\n".join(f"{point} = {place}" for point, place in entry_points(module).items())
    (info / "entry_points.txt").write_text(f"[personalitybench.methods]\n{points}\n")
    return os.pathsep.join([str(site), str(TESTS / module / "src"), str(TESTS.parent)])


def test_the_command_checks_an_installed_package(command: Command, tmp_path: Path) -> None:
    path = installed("personalitybench-example", "example_package", tmp_path / "site")
    name = "personalitybench-example/diary"
    done = command("methods", "check", name, "--set", "honest=false", "--json", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["passed"] is True
    assert [check["check"] for check in said["checks"]] == [check.name for check in CHECKS]
    assert all(check["promise"].endswith(".") and check["reason"] for check in said["checks"])


def test_the_command_fails_with_the_reason(command: Command, tmp_path: Path) -> None:
    path = installed(BROKEN, "broken_package", tmp_path / "site")
    done = command("methods", "check", f"{BROKEN}/moody", "--no-model", PYTHONPATH=path)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "induce draws from the generator of random" in said
    assert "deterministic promises: The same arguments give the same induction" in said
    assert "docs/add-a-method.md" in said
    wrong = command("methods", "check", f"{BROKEN}/moodi", PYTHONPATH=path)
    assert wrong.returncode == 2
    assert f"did you mean '{BROKEN}/moody'" in wrong.stderr


def test_methods_lists_and_shows(command: Command) -> None:
    assert command("methods").stdout == command("methods", "list").stdout
    shown = " ".join(command("methods", "show", "npti").stdout.split())
    assert "intervention (personalitybench-hf, personalitybench-vllm)" in shown
    assert "whole number, ≥ 1 or all" in shown
    assert "Parts of the questions that the jackknife error of each delta is" in shown


class Documented(methods.get("few_shot").Settings):  # type: ignore[misc]
    """Settings with a description of their own.

    Attributes:
        mood: How it is said,
            over two lines.
        odd: See :class:`Odd`.

    Note:
        This is no setting.
    """

    used_after_fit: ClassVar[frozenset[str]] = frozenset()
    mood: str | None = None
    odd: float = 0.5


def test_settings_are_described_by_type_limits_and_docstring() -> None:
    described = {one.name: (one.default, one.values, one.about) for one in describe_settings(Documented)}
    assert described == {
        "examples": ("2", "whole number, ≥ 1, ≤ 4", "How many examples are shown (1 to 4)."),
        "mood": ("null", "text or null", "How it is said, over two lines."),
        "odd": ("0.5", "number", "See Odd."),
    }
