"""Folders, suites and profiles that somebody sent: no code of theirs runs, no judge of theirs is asked, unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from personalitybench.argument_policy import refuse_remote_code
from personalitybench.errors import ConfigurationError
from personalitybench.judging.base import create_judge, load_profile
from personalitybench.remote_code import TRUST_VARIABLE
from tests.security.terminal import one_line, run_command, write_judge

SUITE = """
name: theirs
models: [%s]
methods: [none]
targets: ['openness:high', 'openness:low']
judges: [%s]
questions: {limit: 1}
floors: false
"""
PLAIN_MODEL = "{name: nothing, backend: dummy}"
EVIL = """
from pathlib import Path
Path("EXECUTED").touch()
from transformers import LlamaConfig, LlamaForCausalLM
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
"""


@pytest.fixture
def evil_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder whose code leaves a file EXECUTED in the working folder."""
    folder = tmp_path / "theirs" / "m"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(EVIL)
    return folder


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A run in ``theirs`` whose suite names a profile file beside it."""
    found = write_judge(tmp_path / "theirs", tmp_path / "packages")
    (tmp_path / "s.yaml").write_text(SUITE % (PLAIN_MODEL, "theirs/constant.yaml"))
    done = run_command("run", "s.yaml", "--output", "theirs", cwd=tmp_path, **found)
    assert done.returncode == 0, done.stderr
    return tmp_path, found


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_profile_that_only_the_folder_names_is_refused(finished: tuple[Path, dict[str, str]], dry: list[str]) -> None:
    folder, found = finished
    line = one_line(run_command("judge", "theirs", *dry, cwd=folder, **found))
    assert "theirs/suite.yaml names the judge profile theirs/constant.yaml" in line
    assert "--judge theirs/constant.yaml" in line
    done = run_command("judge", "theirs", "--judge", "theirs/constant.yaml", *dry, cwd=folder, **found)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["{folder}/theirs/constant", "../theirs/constant"])
def test_an_id_is_no_path(name: str, tmp_path: Path) -> None:
    write_judge(tmp_path / "theirs", tmp_path / "packages")
    with pytest.raises(ConfigurationError, match="unknown judge"):
        load_profile(name.format(folder=tmp_path))


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_code_of_a_suites_model_needs_the_users_word(evil_model: Path, tmp_path: Path, dry: list[str]) -> None:
    model = "{name: theirs/m, args: {dtype: float32, trust_remote_code: true}}"
    (tmp_path / "s.yaml").write_text(SUITE % (model, "offline"))
    line = one_line(run_command("run", "s.yaml", *dry, cwd=tmp_path))
    assert "'trust_remote_code' runs code of the model's folder" in line
    assert "--trust-remote-code" in line
    assert not (tmp_path / "EXECUTED").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("command", ["judge", "attack"])
def test_code_of_a_judges_model_needs_the_users_word(
    evil_model: Path, finished: tuple[Path, dict[str, str]], command: str, dry: list[str]
) -> None:
    folder, found = finished
    settings = "{model: theirs/m, rubric: direct, args: {trust_remote_code: true}}"
    (folder / "theirs" / "j.yaml").write_text(f"id: j\nprovider: local-logits\nsummary: s\nsettings: {settings}\n")
    given = {"judge": ("judge", "theirs", "--judge", "theirs/j.yaml"), "attack": ("judges", "attack", "theirs/j.yaml")}
    line = one_line(run_command(*given[command], *dry, cwd=folder, **found))
    assert "--trust-remote-code" in line
    assert not (folder / "EXECUTED").exists()


def test_with_the_users_word_the_code_runs(evil_model: Path, tmp_path: Path) -> None:
    found = write_judge(tmp_path, tmp_path / "packages")
    model = "{name: theirs/m, args: {dtype: float32, trust_remote_code: true}}"
    text = SUITE % (model, "constant.yaml") + "protocol: {max_tokens: 2}\n"
    (tmp_path / "s.yaml").write_text(text)
    done = run_command("run", "s.yaml", "--trust-remote-code", cwd=tmp_path, HF_HOME=str(tmp_path / "hub"), **found)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    "args",
    [
        {"trust_remote_code": "True"},
        {"tokenizer_kwargs": {"trust_remote_code": 1}},
        {"worker_cls": "their.Worker"},
        {"reasoning_parser_plugin": "their.py"},
        {"load_format": "pt"},
        {"use_safetensors": False},
    ],
    ids=str,
)
def test_other_ways_to_run_code_need_it_too(args: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match="--trust-remote-code"):
        refuse_remote_code(args, "suite s")
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    refuse_remote_code(args, "suite s")


def test_arguments_that_run_no_code_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    refuse_remote_code({"trust_remote_code": False, "dtype": "float32", "load_format": "safetensors"}, "suite s")


def test_the_members_of_a_panel_are_asked_for_the_users_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    member = tmp_path / "j.yaml"
    settings = "{model: m, args: {trust_remote_code: true}}"
    member.write_text(f"id: j\nprovider: local-logits\nsummary: s\nsettings: {settings}\n")
    panel = tmp_path / "p.yaml"
    panel.write_text(f"id: p\nprovider: panel\nsummary: s\nsettings: {{judges: [offline, '{member}']}}\n")
    with pytest.raises(ConfigurationError, match="--trust-remote-code"):
        create_judge(str(panel))
