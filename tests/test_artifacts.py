"""The store of fits: what a fit cost, what `artifacts` lists, shows and removes, and what that leaves usable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from personalitybench.artifacts import removal
from personalitybench.artifacts.kept import read_store
from personalitybench.artifacts.removal import Choice, choose, parse_age
from personalitybench.artifacts.store import Fit
from personalitybench.cli import app
from personalitybench.costs import FitCost, describe_cost
from personalitybench.errors import ConfigurationError, PersonalityBenchError, StorageError
from personalitybench.files import content_hash, is_locked, locked, write_json
from personalitybench.methods import MethodContext, create_method
from personalitybench.methods.identification_settings import answers_identity
from personalitybench.prompts import load_wording
from personalitybench.questions import shared_source
from tests.noting import TAKES, Noting, noting
from tests.plugins import write_judge


def command(*arguments: object, answer: str | None = None) -> list[str]:
    """Lines that a command prints on a terminal of 80 columns."""
    done = CliRunner().invoke(app, ["artifacts", *map(str, arguments)], input=answer, env={"COLUMNS": "80"})
    if done.exception is not None:
        raise done.exception
    return done.stdout.splitlines()


def refusal(*arguments: object, answer: str | None = None) -> str:
    with pytest.raises(PersonalityBenchError) as error:
        command(*arguments, answer=answer)
    return str(error.value)


def interrupted(**settings: Any) -> Fit:
    fit = noting(fails=True, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit.make("/nowhere")
    return fit


def folders(cache: Path) -> set[str]:
    return {path.name for part in ("fits", "identifications", "adapters") for path in (cache / part).glob("[!.]*")}


@pytest.fixture
def answers(cache: Path) -> Path:
    """Shared answers that a fit of npti is made of, which was interrupted at once."""
    context = MethodContext(load_wording("project"), shared_source("sample"))
    method = create_method("npti", {"questions": 4}, context)
    fit = Fit("npti", method, {"name": "maker/model", "revision": "1"}, "hf", {})
    write_json(fit.folder / "fit.json", fit.identity)
    about = {name: value for name, value in fit.identity.items() if name != "method"}
    identity = answers_identity(about, fit.identity["method"]["settings"])
    folder = cache / "identifications" / content_hash(identity)[:12]
    write_json(folder / "identity.json", identity)
    for run in ("openness-high", "openness-low"):
        write_json(folder / run / "answers.json", {"lines": 0})
    (folder / "openness-low" / "answers.jsonl").write_text("x" * 3000)
    return folder


# What a fit cost


def test_the_store_completes_the_cost_of_a_method_that_writes_none(cache: Path) -> None:
    fit = noting()
    artifact = fit.make("/nowhere")
    assert artifact is not None
    cost = artifact.cost
    assert cost is not None
    assert TAKES <= cost.seconds < TAKES + 5
    assert cost == FitCost(seconds=cost.seconds, bytes=12)
    assert artifact.provenance["versions"]["personalitybench"]
    recorded = json.loads((fit.folder / "fitted.json").read_text())
    assert recorded == {"sha256": artifact.sha256}, "what it took is not what it is"
    assert fit.make("/nowhere") == artifact


def test_sessions_add_up_and_a_kill_before_the_end_leaves_no_fit(cache: Path) -> None:
    stopped = interrupted()
    assert stopped.artifact() is None
    fit = noting()
    assert fit.folder == stopped.folder
    artifact = fit.make("/nowhere")
    assert artifact is not None
    assert artifact.cost is not None
    assert artifact.cost.seconds >= 2 * TAKES
    assert (fit.folder / "fitted.json").stat().st_mtime_ns >= (artifact.folder / "provenance.json").stat().st_mtime_ns
    (fit.folder / "fitted.json").unlink()  # as if killed after provenance.json
    assert fit.artifact() is None
    again = fit.make("/nowhere")
    assert again == artifact


def test_what_the_method_wrote_of_its_cost_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Noting.fit

    def fit_and_tell(self: Noting, context: Any) -> Any:
        made = whole(self, context)
        write_json(context.folder / "provenance.json", {"cost": {"seconds": 7.5, "neurons": 3}, "versions": {"a": "1"}})
        return made

    monkeypatch.setattr(Noting, "fit", fit_and_tell)
    artifact = noting().make("/nowhere")
    assert artifact is not None
    assert artifact.cost == FitCost(seconds=7.5, neurons=3, bytes=12)
    assert artifact.provenance["versions"] == {"a": "1"}


@pytest.mark.model
def test_npti_says_what_it_took(cache: Path, tiny_model: Path) -> None:
    settings = {"questions": 2, "max_tokens": 3, "batch_size": 2, "shards": 2, "selection": "own-pole"}
    context = MethodContext(load_wording("project"), shared_source("sample"))
    fit = Fit(
        "npti", create_method("npti", settings, context), {"name": "m", "revision": "1"}, "hf", {"dtype": "float32"}
    )
    artifact = fit.make(str(tiny_model), device="cpu")
    assert artifact is not None
    assert artifact.cost is not None
    manifest = json.loads((artifact.folder / "npti.json").read_text())
    assert artifact.cost.generated_tokens == sum(run["tokens"] for run in manifest["runs"].values()) > 0
    assert artifact.cost.neurons == sum(one["neurons"] + one["clamped"] for one in manifest["targets"].values()) > 0
    assert artifact.cost.bytes == artifact.size > 0
    assert artifact.cost.seconds > 0
    shown = " ".join(" ".join(command("list")).split())
    assert describe_cost(artifact.cost) in shown
    assert f"for {fit.label}" in shown
    lines = command("show", fit.label)
    assert any(line.startswith("conscientiousness:high") for line in lines), "what the method tells"


@pytest.mark.model
def test_a_suite_fits_again_what_was_pruned(cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    """New answers need the fit; it comes out the same, so they stand beside the old ones, and rows have its cost."""
    from personalitybench.runs.command import run_suite

    path = tmp_path / "suite.yaml"

    def run(strengths: str) -> dict[float, dict[str, Any]]:
        path.write_text(
            f"""
name: again
models: [{{name: {tiny_model}, backend: personalitybench-hf, args: {{dtype: float32}}, device: cpu}}]
methods:
  - {{name: npti, settings: {{questions: 2, max_tokens: 3, selection: own-pole, shards: 2}}, strengths: {strengths}}}
targets: ["agreeableness:high"]
judges: [{write_judge(tmp_path, "a")}]
floors: false
questions: {{limit: 1}}
protocol: {{max_tokens: 3}}
"""
        )
        run_suite(str(path), tmp_path / "run", [], Console(quiet=True))
        rows = json.loads((tmp_path / "run" / "leaderboard.json").read_text())["rows"]
        return {row["identity"]["method"]["strength"]: row for row in rows}

    (first,) = run("[8.0]").values()
    assert first["provenance"]["fit"]["neurons"] > 0
    answers = {path: path.read_bytes() for path in (tmp_path / "run").rglob("answers.jsonl")}
    (fit,) = read_store().fits
    command("prune", fit.name, "--yes")
    assert any("answers of" in line for line in command("prune", "--unused", "--dry-run"))
    both = run("[8.0, 9.0]")
    assert both[8.0] == first
    assert both[9.0]["identity"]["method"]["artifact"] == first["identity"]["method"]["artifact"]
    assert both[9.0]["provenance"]["fit"]["neurons"] == first["provenance"]["fit"]["neurons"]
    assert {path: path.read_bytes() for path in answers} == answers
    command("prune", "--all", "--yes")
    assert run("[8.0, 9.0]") == both, "answers that are there need no fit"
    assert read_store().fits == []


def test_how_a_cost_is_said() -> None:
    whole = FitCost(seconds=158.4, generated_tokens=25_012, neurons=24_321, bytes=1_234_567)
    assert describe_cost(whole) == "158 s, 25,012 tokens written, 24,321 neurons, 1.2 MB"
    trained = FitCost(seconds=11_100, trained_tokens=1_000, parameters=460_800, bytes=999)
    assert describe_cost(trained) == "3 h 05 min, 1,000 tokens trained on, 460,800 parameters trained, 999 B"
    assert describe_cost(FitCost()) == ""
    seconds = {0.04: "0.0 s", 4.25: "4.2 s", 9.96: "10 s", 599.4: "599 s", 600: "10 min", 7199: "2 h 00 min"}
    assert {value: describe_cost(FitCost(seconds=value)) for value in seconds} == seconds
    sizes = {999: "999 B", 1000: "1.0 kB", 99_960: "100 kB", 999_600: "1.0 MB", 7_200_000_000: "7.2 GB"}
    assert {size: describe_cost(FitCost(bytes=size)) for size in sizes} == sizes


# List


def test_the_list(answers: Path, cache: Path) -> None:
    complete = noting(preset="long")
    artifact = complete.make("/nowhere")
    assert artifact is not None
    stopped = interrupted(size=4)
    (cache / "adapters" / "abc").mkdir(parents=True)
    (cache / "adapters" / "abc" / "weights").write_text("x" * 70)
    lines = command("list")
    assert all(len(line.rstrip()) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    state = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("noting-", "npti-"))}
    (npti,) = state.keys() - {complete.label, stopped.label}
    assert state == {complete.label: "complete", stopped.label: "interrupted", npti: "interrupted"}
    assert "model @ 01234567 transformers, dtype=float32; sample questions, seed 0 preset=long" in text
    assert "preset=long," not in text, "a size that the preset sets need not be said"
    assert f"for {npti}" in text
    assert "3 fits" in text
    assert "1 copy of an adapter at another strength, 70 B" in text
    listed = json.loads("\n".join(command("list", "--json")))
    assert listed["bytes"] == sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    (found,) = (one for one in listed["fits"] if one["name"] == complete.label)
    assert (found["state"], found["sha256"], found["changed"]) == ("complete", artifact.sha256, {"preset": "long"})
    assert listed["answers"][0]["fits"] == [npti]
    assert listed["answers"][0]["runs"] == 2
    only = command("list", "--method", "noting")
    assert not any("npti" in line for line in only[:-1])
    assert "did you mean 'noting'" in refusal("list", "--method", "notin")
    assert "no fit was made yet" in "".join(CliRunner().invoke(app, ["artifacts", "list"], env={
        "PERSONALITYBENCH_CACHE": str(cache / "empty")}).stdout)  # fmt: skip


def test_the_list_says_what_is_in_use_and_when_it_was_used(cache: Path) -> None:
    fit = noting()
    fit.make("/nowhere")
    long_ago = time.time() - 40 * 86400
    for path in fit.folder.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    os.utime(fit.folder, (long_ago, long_ago))
    assert any("40 d ago" in line for line in command("list"))
    assert not is_locked(fit.folder)
    with locked(fit.folder, "x"):
        assert is_locked(fit.folder)
        assert any("in use" in line for line in command("list"))
    assert not is_locked(fit.folder)
    assert fit.artifact() is not None
    (found,) = read_store().fits
    assert datetime.now(UTC) - found.used < timedelta(minutes=5), "it was used when it was found"


def test_what_is_no_fit_is_listed_as_such(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = {name: noting(size=size) for size, name in enumerate(("gone", "empty", "renamed", "altered", "old", "cost"))}
    for fit in fits.values():
        fit.make("/nowhere")
    labels = {name: fit.label for name, fit in fits.items()}  # they hold the version, which is raised below
    (cache / "fits" / "junk").mkdir()
    (cache / "fits" / "junk" / "fit.json").write_text("{")
    (cache / "fits" / "strange").mkdir()
    write_json(cache / "fits" / "strange" / "fit.json", ["not", "one"])
    shutil.rmtree(fits["gone"].folder / "artifact")
    (fits["empty"].folder / "fitted.json").write_text("[]")
    fits["renamed"].folder.rename(cache / "fits" / "mine")
    (fits["altered"].folder / "artifact" / "notes.json").write_text("other")
    write_json(fits["cost"].folder / "artifact" / "provenance.json", {"cost": {"seconds": -1}})
    unknown = {**fits["old"].identity, "method": {"name": "somebody/else", "version": "1", "settings": {"deep": [1]}}}
    label = f"somebody_else-{content_hash(unknown)[:12]}"
    write_json(cache / "fits" / label / "fit.json", unknown)
    (cache / "identifications" / "junk").mkdir(parents=True)
    monkeypatch.setattr(Noting, "version", "2")
    found = {fit.name: fit for fit in read_store().fits}
    problems = {
        "junk": "no readable fit.json",
        "strange": "no readable fit.json",
        labels["gone"]: "artifact is missing",
        labels["empty"]: "not what a fit writes",
        "mine": "does not follow from its fit.json",
        labels["cost"]: "is no cost of a fit",
    }
    assert {name for name, fit in found.items() if fit.state == "damaged"} == set(problems)
    for name, says in problems.items():
        assert says in found[name].problem
    assert found[label].state == "interrupted"
    assert found[label].note == "method 'somebody/else' is not installed here"
    assert found[label].changed == {"deep": [1]}
    assert {fit.note for fit in found.values() if fit.state == "complete"} == {
        "method 'noting' has changed since (version 2 here): it does not use this, it fits anew"
    }
    assert any("no answers of ours" in line for line in command("list"))
    assert "not what was fitted" in refusal("list", "--verify")
    verified = {fit.name: fit for fit in read_store(verify=True).fits}
    assert {name for name, fit in verified.items() if fit.state == "damaged"} == {*problems, labels["altered"]}
    assert "truncated or altered" in verified[labels["altered"]].problem
    assert "fits/junk, identifications/junk" in refusal("show", "junk")
    assert "removes it" in refusal("show", "fits/junk")
    command("prune", "--all", "--yes")
    assert not folders(cache)


# Show


def test_show(cache: Path, answers: Path) -> None:
    fit = noting(size=7, seed=3)
    artifact = fit.make("/nowhere")
    assert artifact is not None
    for name in (fit.label, fit.label[:10], fit.label.rpartition("-")[2][:6]):
        lines = command("show", name)
        assert lines[0].startswith(f"{fit.label}: complete")
    text = "\n".join(lines)
    assert artifact.sha256 in text
    assert "size=7" in text
    assert "artifact/notes.json" in text
    assert "work/ (1 file)" in text
    assert any(line.split() == ["openness:high", "7"] for line in lines)
    (metadata,) = (line.partition("--metadata ")[2].strip("'") for line in lines if "--metadata" in line)
    wanted = {"method": "noting", "artifact": str(artifact.folder), "strength": 1.0, "seed": 3}
    assert json.loads(metadata) == wanted
    near = fit.label.replace("noting", "nothing")
    assert f"did you mean '{fit.label}'" in refusal("show", near)
    interrupted(size=8)
    assert "the names of several" in refusal("show", "noting")
    shown = command("show", answers.name)
    assert shown[0].startswith(f"{answers.name}: answers of 2 runs")
    assert any(line.startswith("openness-low") and "3.0 kB" in line for line in shown)
    assert "not a fit" in refusal("show", answers.name, "--output", cache / "out")
    (artifact.folder / "unreadable").touch()
    assert "ValueError: <b>cannot" in "".join(command("show", fit.label)), "a method that fails hides nothing"


# Prune


def test_a_file_of_two_fits_takes_its_room_once_and_is_freed_by_the_second(cache: Path) -> None:
    one, other = noting(), noting("maker/other")
    for fit in (one, other):
        fit.make("/nowhere")
        (fit.folder / "work").mkdir(exist_ok=True)
    (one.folder / "work" / "adapter").write_bytes(bytes(5_000_000))
    (other.folder / "work" / "adapter").hardlink_to(one.folder / "work" / "adapter")
    assert "2 fits, 5.0 MB; together 5.0 MB in" in " ".join(command("list"))
    shown = command("prune", one.label, "--yes")
    assert any("5.0 MB" in line for line in shown), "each has the room that it would take alone"
    assert any("kB (what other fits share stays)" in line for line in shown)
    assert shown[-1].endswith("kB")
    shown = command("prune", other.label, "--yes")
    assert "5.0 MB. Answers and boards" in " ".join(shown)
    assert shown[-1] == "freed: 5.0 MB"


def test_prune_removes_what_was_chosen_and_nothing_else(answers: Path, cache: Path) -> None:
    complete, stopped, other = noting(), interrupted(size=4), noting("maker/other")
    complete.make("/nowhere")
    other.make("/nowhere")
    (cache / "adapters" / "abc").mkdir(parents=True)
    before = folders(cache)
    (npti,) = (name for name in before if name.startswith("npti-"))
    assert "say what to remove" in refusal("prune")
    assert "leave it or the other conditions" in refusal("prune", "--all", "--unused")
    assert "one after the other" in refusal("prune", "--unused", "--interrupted")
    assert "12h, 30d or 8w" in refusal("prune", "--older-than", "month")
    assert "did you mean" in refusal("prune", complete.label, f"{complete.label[:-1]}x")
    assert "--yes answers it" in refusal("prune", "--all", answer="")
    assert command("prune", complete.label, answer="n\n")[-1] == "nothing was removed"
    shown = command("prune", "--all", "--dry-run")
    assert all(any(line.startswith(name) for line in shown) for name in before)
    assert command("prune", "--older-than", "1h", "--yes") == ["there is nothing to remove"]
    assert folders(cache) == before

    size = sum(path.stat().st_size for path in stopped.folder.rglob("*") if path.is_file())
    done = command("prune", "--interrupted", "--method", "noting", answer="y\n")
    assert f"freed: {size / 1000:.1f} kB" in done
    assert "Answers and boards of runs stay" in "".join(done)
    before.remove(stopped.label)
    assert folders(cache) == before
    command("prune", "--model", "other", "--yes")
    before.remove(other.label)
    assert folders(cache) == before
    command("prune", "--unused", "--yes")
    before.remove("abc")
    assert folders(cache) == before, "answers that a fit is made of are used, finished or not"
    command("prune", npti, "--yes")
    command("prune", "--unused", "--yes")
    assert folders(cache) == {complete.label}


def test_prune_by_age(cache: Path) -> None:
    old, new = noting(size=1), noting(size=2)
    old.make("/nowhere")
    new.make("/nowhere")
    store, now = read_store(), datetime.now(UTC)
    assert choose(store, Choice(older_than=parse_age("1d")), now) == []
    assert len(choose(store, Choice(older_than=parse_age("1d")), now + timedelta(days=2))) == 2
    assert [
        item.name for item in choose(store, Choice([old.label], older_than=parse_age("0h")), now + timedelta(1))
    ] == [old.label]
    assert (parse_age("8w"), parse_age("12h")) == (timedelta(weeks=8), timedelta(hours=12))
    with pytest.raises(ConfigurationError):
        parse_age("-1d")


def test_prune_leaves_what_a_process_works_in(cache: Path) -> None:
    fit, free = noting(), noting(size=2)
    fit.make("/nowhere")
    free.make("/nowhere")
    code = (
        "import sys\nfrom pathlib import Path\nfrom personalitybench.files import locked\n"
        "with locked(Path(sys.argv[1]), 'x'):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(fit.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    done = command("prune", "--all", "--yes")
    process.communicate()
    assert any(line.startswith(f"left: {fit.label}: another process is working in") for line in done)
    assert f"removed: {free.label}" in done
    assert fit.artifact() is not None
    assert free.artifact() is None
    command("prune", "--all", "--yes")
    assert fit.artifact() is None


def test_a_kill_amid_removal_leaves_no_half_artifact(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = noting()
    made = fit.make("/nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(removal, "_delete", lambda _: sys.exit(9))
        with pytest.raises(SystemExit):
            command("prune", fit.label, "--yes")
    assert not fit.folder.exists()
    assert len(read_store().leftovers) == 1
    assert any("left by a prune that was killed" in line for line in command("list"))
    assert fit.make("/nowhere") == made, "what is left is in nobody's way"
    done = command("prune", "--interrupted", "--yes")
    assert done[0] == "there is nothing to remove"
    assert done[-1].startswith("freed: 6.")
    assert read_store().leftovers == []
    assert fit.artifact() == made


def test_a_fit_that_was_completed_meanwhile_stays(cache: Path) -> None:
    fit = interrupted()
    (item,) = choose(read_store(), Choice(interrupted=True))
    made = noting().make("/nowhere")
    with pytest.raises(StorageError, match="was completed meanwhile"):
        removal.remove(item)
    assert fit.artifact() == made


def test_a_run_is_told_where_what_is_fitted_again_is_not_the_same(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = noting()
    first = fit.make("/nowhere")
    assert first is not None
    fit.note(tmp_path, first)
    command("prune", fit.label, "--yes")
    assert fit.noted(tmp_path) == first.sha256, "a run knows what it used"
    again = fit.make("/nowhere")
    assert again is not None
    fit.note(tmp_path, again)
    command("prune", fit.label, "--yes")
    monkeypatch.setattr(Noting, "notes", "b")
    other = fit.make("/nowhere")
    assert other is not None
    with pytest.raises(StorageError, match="used another artifact"):
        fit.note(tmp_path, other)
