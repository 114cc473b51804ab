"""The store of fits and the command `fit`: what is shared, what is fitted anew, kills, faults, what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

torch = pytest.importorskip("torch")

from personalitybench.artifacts.store import Fit  # noqa: E402
from personalitybench.errors import (  # noqa: E402
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    NeedsNotMetError,
    PersonalityBenchError,
    StorageError,
)
from personalitybench.files import locked  # noqa: E402
from personalitybench.methods import Artifact, MethodContext, create_method  # noqa: E402
from personalitybench.methods.npti import NptiSettings  # noqa: E402
from personalitybench.prompts import load_wording  # noqa: E402
from personalitybench.questions import shared_source  # noqa: E402
from personalitybench.runs.fit_command import FitOptions, fit_method  # noqa: E402
from personalitybench.traits import TARGETS  # noqa: E402
from personalitybench.validation import parse_pairs  # noqa: E402

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("own_cache")]

SMALL = ("questions=4", "max_tokens=5", "batch_size=2", "shards=2")


def options(model: Path, *settings: str, **others: Any) -> FitOptions:
    return FitOptions("npti", str(model), model_args="dtype=float32", settings=(*SMALL, *settings), **others)


def fitted(wanted: FitOptions) -> tuple[Artifact | None, str]:
    console = Console(record=True, width=80, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    return fit_method(wanted, console), console.export_text()


@pytest.fixture(scope="module")
def artifact(tiny_model: Path) -> Artifact:
    found, _ = fitted(options(tiny_model))
    assert found is not None
    return found


def fit_of(model: Path | str, backend: str = "hf", seed: int = 0, **settings: Any) -> Fit:
    context = MethodContext(load_wording("project"), shared_source("sample"), seed)
    method = create_method("npti", settings, context)
    return Fit("npti", method, {"name": str(model), "revision": "1"}, backend, {"dtype": "float32"})


def stamps(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}


def test_the_command_shows_what_was_found_and_how_to_use_it(artifact: Artifact, tiny_model: Path) -> None:
    again, printed = fitted(options(tiny_model))
    assert again == artifact
    lines = printed.splitlines()
    assert " ".join(lines[0].split()) == "target neurons asked tokens δ error answer s read s"
    assert [line.split()[0] for line in lines[2:12]] == [str(target) for target in TARGETS], "whole, on 80 columns"
    assert "in a suite: nothing to do" in printed
    (metadata,) = (line.partition("--metadata ")[2].strip("'") for line in lines if "--metadata" in line)
    assert json.loads(metadata) == {"method": "npti", "artifact": str(artifact.folder), "strength": 1.0}
    identity = json.loads((artifact.folder.parent / "fit.json").read_text())
    assert identity["method"]["settings"]["questions"] == 4
    assert identity["model"]["engine"] == "transformers"


def test_what_decides_a_fit(tiny_model: Path) -> None:
    one = fit_of("m")
    same = (fit_of("m", "personalitybench-hf"), fit_of("m", keep=0.5, first_token=True), fit_of("m", questions=2000))
    assert {other.folder for other in same} == {one.folder}
    assert replace(one, model_args={"dtype": "float32", "revision": "abc"}).folder == one.folder, "see its commit"
    others = [
        fit_of("m", "vllm"),
        fit_of("n"),
        fit_of("m", seed=1),
        fit_of("m", questions=3),
        fit_of("m", selection="own-pole"),
        fit_of("m", threshold=0.2),
        replace(one, model={"name": "m", "revision": "2"}),
        replace(one, model_args={"dtype": "bfloat16"}),
    ]
    assert len({one.folder, *(other.folder for other in others)}) == 1 + len(others)


def test_presets_and_what_is_set_beside_them() -> None:
    paper = NptiSettings.paper().model_dump()
    released = NptiSettings.released_code().model_dump()
    assert NptiSettings().model_dump() == paper
    assert {name: value for name, value in released.items() if value != paper[name]} == {
        "selection": "released-code",
        "inclusive": True,
        "at_least": 2000,
        "at_most": 300_000,
        "a95_from": "own-pole",
        "arithmetic": "float32",
        "token_rule": "released-code",
        "counted_in": "decoding",
        "bins": "released-code",
        "clamp": "layers-of-own",
        "keep": 0.9,
    }
    mixed = NptiSettings.model_validate({"selection": "released-code", "keep": 1.0, "threshold": 0.2})
    assert mixed.model_dump() == released | {"keep": 1.0, "threshold": 0.2}, "what differs stands in the row"
    assert NptiSettings.model_validate(mixed.model_dump()) == mixed
    own = NptiSettings.model_validate({"selection": "own-pole"}).model_dump()
    assert {name for name in own if own[name] != paper[name]} == {"selection", "a95_from"}


def test_another_selection_generates_nothing(artifact: Artifact, tiny_model: Path, own_cache: Path) -> None:
    """A model that is not there would be noticed if it were loaded."""
    identity = json.loads((artifact.folder.parent / "fit.json").read_text())
    record = {name: identity["model"][name] for name in ("name", "revision")}
    settings: dict[str, Any] = {"questions": 4, "max_tokens": 5, "batch_size": 2, "shards": 2}
    answers = stamps(own_cache, "answers.jsonl")
    assert len(answers) == 15
    own = replace(fit_of("m", selection="own-pole", threshold=0.2, **settings), model=record)
    made = own.make("/nowhere")
    assert made is not None
    assert made.sha256 != artifact.sha256
    released = replace(fit_of("m", selection="released-code", **settings), model=record)
    with pytest.raises(ModelError, match="nowhere"):
        released.make("/nowhere")  # other bins: the answers are read again
    found = released.make(str(tiny_model))
    assert found is not None
    manifest = json.loads((found.folder / "npti.json").read_text())
    assert manifest["settings"]["clamp"] == "layers-of-own"
    assert len(manifest["runs"]) == 10, "nothing unprompted is needed"
    assert stamps(own_cache, "answers.jsonl") == answers
    read = list(own_cache.rglob("statistics/released-code-released-code-2-decoding/manifest.json"))
    assert len(read) == 10, "counted in the answers that were there"


def test_one_process_at_a_time(artifact: Artifact, tiny_model: Path, tmp_path: Path) -> None:
    fit = fit_of("m", questions=5)
    with locked(fit.folder, "x"), pytest.raises(StorageError, match="another process is fitting npti for m"):
        fit.make(str(tiny_model))
    (identification,) = (path.parent for path in artifact.folder.parents[2].glob("identifications/*/identity.json"))
    with locked(identification, "x"), pytest.raises(StorageError, match="another process is answering identification"):
        fitted(options(tiny_model, "threshold=0.3"))


def test_an_artifact_that_is_not_what_was_fitted(artifact: Artifact, tiny_model: Path, tmp_path: Path) -> None:
    def damaged(damage: Callable[[Path], object]) -> str:
        kept = tmp_path / "kept"
        shutil.copytree(artifact.folder, kept)
        try:
            damage(artifact.folder)
            with pytest.raises(StorageError) as error:
                fitted(options(tiny_model))
        finally:
            shutil.rmtree(artifact.folder, ignore_errors=True)
            kept.rename(artifact.folder)
        return str(error.value)

    tensors = "openness-high/intervention.safetensors"
    assert "truncated or altered" in damaged(lambda at: (at / tensors).write_bytes((at / tensors).read_bytes()[:-5]))
    assert "truncated or altered" in damaged(lambda at: (at / tensors).unlink())
    assert "is missing although" in damaged(shutil.rmtree)
    (artifact.folder / "provenance.json").write_text('{"seconds": {}, "versions": {}}')
    assert Artifact.open(artifact.folder) == artifact, "how long it took is not what it is"


def test_what_cannot_be_fitted(tiny_model: Path) -> None:
    none, printed = fitted(FitOptions("simple", str(tiny_model)))
    assert none is None
    assert "method 'simple' fits nothing" in printed
    refused: list[tuple[FitOptions, type[PersonalityBenchError], str]] = [
        (replace(options(tiny_model), method="nptl"), ConfigurationError, "did you mean 'npti'"),
        (options(tiny_model, "threshhold=0.2"), ConfigurationError, "did you mean 'threshold'"),
        (options(tiny_model, "questions=5"), ConfigurationError, "'questions' is given twice"),
        (options(tiny_model, "selection=own_pole"), ConfigurationError, "'own-pole'"),
        (options(tiny_model, "at_most=[1"), ConfigurationError, "not YAML"),
        (options(tiny_model, "questions"), ConfigurationError, "NAME=VALUE"),
        (replace(options(tiny_model), backend="dummy"), NeedsNotMetError, "personalitybench-hf, personalitybench-vllm"),
        (FitOptions("npti", str(tiny_model), settings=["questions=0"]), ConfigurationError, "questions"),
        (FitOptions("npti", str(tiny_model), source="smaple"), ConfigurationError, "did you mean 'sample'"),
    ]
    if importlib.util.find_spec("vllm") is None:
        refused.append((options(tiny_model, backend="vllm"), MissingDependencyError, r"personalitybench\[vllm\]"))
    for wanted, kind, says in refused:
        with pytest.raises(kind, match=says):
            fitted(wanted)


def test_pairs_are_read_as_yaml() -> None:
    pairs = ["questions=all", "first_token=true", "keep=0.9", "at_most=null", "name=a=b"]
    assert parse_pairs(pairs, "--set") == {
        "questions": "all",
        "first_token": True,
        "keep": 0.9,
        "at_most": None,
        "name": "a=b",
    }


@pytest.mark.parametrize(
    ("model", "questions", "tokens"),
    [("tiny_model", 12, 10), pytest.param("demo_model", 2, 3, marks=pytest.mark.slow)],
)
def test_a_killed_fit_and_an_interrupted_one_end_as_if_never_stopped(
    model: str, questions: int, tokens: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A process of its own: SIGKILL amid the answers, Ctrl-C at the next try, then to the end."""
    folder: Path = request.getfixturevalue(model)
    settings = (f"questions={questions}", f"max_tokens={tokens}", "batch_size=1", "shards=2", "selection=own-pole")
    command = [sys.executable, "-m", "personalitybench.cli", "fit", "npti", "--model", str(folder)]
    command += ["--model-args", "dtype=bfloat16", *(part for text in settings for part in ("--set", text))]
    cache = tmp_path / "stopped"
    for number, stop in ((3, signal.SIGKILL), (7, signal.SIGINT)):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PERSONALITYBENCH_CACHE": str(cache)},
        )
        while process.poll() is None and len(list(cache.rglob("answers.jsonl"))) < number:
            time.sleep(0.02)
        process.send_signal(stop)
        _, said = process.communicate(timeout=300)
        assert not list(cache.rglob("fitted.json"))
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[stop], said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    wanted = FitOptions("npti", str(folder), model_args="dtype=bfloat16", settings=settings)
    found = {}
    for name in ("stopped", "whole"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PERSONALITYBENCH_CACHE", str(tmp_path / name))
            artifact, _ = fitted(wanted)
        assert artifact is not None
        files = (tmp_path / name / "identifications").rglob("*")
        kept = {
            str(path.relative_to(tmp_path / name)): path for path in files if path.suffix in {".safetensors", ".jsonl"}
        }
        answers = {name: path.read_bytes() for name, path in kept.items() if "seconds" not in name}
        found[name] = (artifact.sha256, answers)
    assert len(found["whole"][1]) == 20
    assert found["stopped"] == found["whole"]
