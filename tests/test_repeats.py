"""Suites whose entries would be one row of a board twice: refused by a run and by a dry run, before any answer."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from personalitybench.errors import ConfigurationError
from personalitybench.resources import bundled
from personalitybench.runs.call_folders import CallFolders
from personalitybench.runs.repeats import refuse_repeats
from personalitybench.runs.store import RunFolder
from personalitybench.runs.suite import load_suite


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def write(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "models": ["demo"], "methods": ["none"], "floors": False} | changes))
    return path


def check(tmp_path: Path, **changes: Any) -> None:
    suite = load_suite(str(write(tmp_path, **changes)))
    refuse_repeats(CallFolders(suite, RunFolder(tmp_path / "run")))


def npti(*strengths: float | dict[str, float], **changes: Any) -> dict[str, Any]:
    return {"name": "npti", "strengths": list(strengths)} | changes


def served(name: str, backend: str, **args: Any) -> dict[str, Any]:
    return {"name": name, "backend": backend, "args": args}


def tuned(*strengths: float) -> dict[str, Any]:
    return npti(*strengths, choose_on="dev")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["none", "simple", "none"]}, r"methods\.0 and methods\.2 \(none\).*settings are the same"),
        ({"methods": [npti(0.5, 1.0), npti(1.0, 2.0)]}, r"methods\.0 and methods\.1 \(npti\).*both have strength 1\.0"),
        ({"methods": [npti(1.0), npti(1.0, settings={"max_tokens": 500})]}, "strength 1"),
        ({"methods": ["p2", tuned(1, 2), tuned(2, 3)]}, r"methods\.1 and methods\.2.*dev half"),
        ({"seeds": [3, 0, 3]}, r"seeds\.0 and seeds\.2 are both 3"),
        ({"judges": ["offline", "offline"]}, r"judges\.0 and judges\.1 have the same id 'offline'"),
        (
            {"models": [served("m", "local-chat-completions", base_url=f"http://{host}/v1") for host in "ab"]},
            "base_url",
        ),
        ({"models": [served("a", "dummy"), served("b", "dummy")]}, r"models\.0 and models\.1 \(b\)"),
        (
            {"models": [served("m", "local-chat-completions"), served("m", "openai-chat-completions")]},
            "they differ in backend only",
        ),
        (
            {"methods": [{"name": "few_shot"}, {"name": "few_shot", "settings": {"examples": 2}}]},
            "settings are the same",
        ),
        (
            {"methods": [npti({"openness": 1.0}), npti({"openness:high": 1.0, "openness:low": 1})]},
            r"methods\.0 and methods\.1 \(npti\)",
        ),
    ],
)
def test_entries_that_are_the_same_to_a_board(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["none", "simple", "p2"]},
        {"methods": [npti(0.5), npti(1.0)]},
        {"methods": [npti(1.0), npti({"extraversion": 1.0})]},
        {"methods": ["p2", tuned(1, 2), npti(1.0)]},
        {"methods": [npti(1.0), npti(1.0, settings={"max_tokens": 8})]},
        {"seeds": [0, 1]},
        {"models": [served("m", "local-chat-completions"), served("m", "local-completions")]},
        {"models": [served("m", "local-chat-completions"), served("n", "local-chat-completions")]},
    ],
)
def test_entries_that_are_rows_of_their_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    check(tmp_path, **changes)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"args": {"dtype": "bfloat16"}}, r"they differ in args\.dtype only"),
        ({"batch_size": 1, "device": "cpu"}, "they differ in batch_size, device only"),
        ({"backend": "personalitybench-hf"}, "they differ in backend only"),
        ({}, "they are the same"),
    ],
)
def test_one_model_under_settings_that_no_row_tells_apart(
    model: Path, tmp_path: Path, other: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"models\.0 and models\.1.*{says}"):
        check(tmp_path, models=[str(model), {"name": str(model)} | other])


def test_a_copy_of_a_model_under_its_name_is_the_same_and_another_model_is_not(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copies" / model.name
    shutil.copytree(model, copy)
    with pytest.raises(ConfigurationError, match="they differ in name only"):
        check(tmp_path, models=[str(model), str(copy)])
    (copy / "model.safetensors").write_bytes(b"weights")
    check(tmp_path, models=[str(model), str(copy)])


def test_one_model_by_several_paths(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alias").symlink_to(model)
    (tmp_path / "other").mkdir()
    for name in ("./tiny", "tiny/", "alias", "other/../tiny"):
        with pytest.raises(ConfigurationError, match="they differ in name only"):
            check(tmp_path, models=[str(model), name])


@pytest.mark.parametrize("argument", ["peft", "tokenizer"])
def test_one_adapter_or_tokenizer_by_several_paths(argument: str, model: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "adapter_config.json").write_text("{}")
    models = [{"name": str(model), "args": {argument: path}} for path in (str(part), f"{part}/")]
    with pytest.raises(ConfigurationError, match=rf"they differ in args\.{argument} only"):
        check(tmp_path, models=models)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text('{"r": 1}')
    check(tmp_path, models=[models[0], {"name": str(model), "args": {argument: str(tmp_path / "other")}}])


def test_one_judge_by_its_id_and_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"judges\.0 and judges\.1 have the same id 'offline'"):
        check(tmp_path, judges=["offline", str(bundled("judges") / "offline.yaml")])


def test_models_that_are_not_here_are_compared_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"models\.0 and models\.1"):
        check(tmp_path, models=["./gone", {"name": "./gone", "args": {"dtype": "float16"}}])
    check(tmp_path, models=["./gone", "./gone-too"])


@pytest.mark.model
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": 2}, "args.dtype"),
        ({"methods": ["none", "none"]}, "methods.0 and methods.1 (none)"),
        ({"seeds": [0, 0]}, "seeds.0 and seeds.1 are both 0"),
    ],
)
def test_a_run_and_a_dry_run_refuse_before_anything_is_asked(
    tiny_model: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """F06."""
    models = [{"name": str(tiny_model), "args": {"dtype": dtype}} for dtype in ("float32", "bfloat16")]
    number = changes.get("models", 1)
    write(tmp_path, **changes | {"models": models[:number]})
    for arguments in (("--dry-run",), ()):
        done = command("run", "suite.yaml", "--output", "out", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
