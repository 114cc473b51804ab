"""The command line as a user meets it: quick help, and every mistake answered by one clear line and status 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

SUITE = """
name: mine
models: [{{name: {model}, backend: {backend}}}]
methods: [{method}]
targets: [{target}]
judges: [{judge}]
questions: {{source: {source}, limit: 1}}
protocol: {{max_tokens: 4}}
"""


def suite(tmp_path: Path, extra: str = "", **values: str) -> Path:
    known = {
        "model": "nothing",
        "backend": "dummy",
        "method": "none",
        "target": "'openness:high'",
        "judge": "offline",
        "source": "sample",
    }
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE.format(**known | values) + extra)
    return path


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("personalitybench: ")
    return lines[0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": "simpel"}, "unknown method 'simpel': did you mean 'simple'?"),
        ({"target": "'extroversion:high'"}, "unknown trait 'extroversion': did you mean 'extraversion'?"),
        ({"target": "'openness'"}, "write a trait and a pole"),
        ({"judge": "ofline"}, "unknown judge 'ofline': did you mean 'offline'?"),
        ({"extra": "judge: offline\n"}, "unknown key 'judge': did you mean 'judges'?"),
        ({"extra": "seeds: [a]\n"}, "seeds.0"),
        ({"method": "{name: p2, settings: {released: true}}"}, "did you mean 'released_code'?"),
        ({"method": "{name: p2, strengths: [1.0]}"}, "has no strength"),
        ({"backend": "hf"}, "unknown model 'nothing'"),
        ({"backend": "hf", "model": "/no/such/folder"}, "model folder /no/such/folder does not exist"),
        ({"backend": "tranformers"}, "lm-eval has no model type 'tranformers'"),
        ({"source": "offical"}, "questions.source"),
    ],
)
def test_a_wrong_suite(command: Command, tmp_path: Path, values: dict[str, str], says: str) -> None:
    pytest.importorskip("torch")
    assert says in one_line(command("run", str(suite(tmp_path, **values))))


def test_no_suite_and_a_broken_one(command: Command, tmp_path: Path) -> None:
    assert "does not exist" in one_line(command("run", "nothing.yaml"))
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    assert "is not YAML" in one_line(command("run", str(path)))
    path.write_text("- a list")
    assert "is not a mapping" in one_line(command("run", str(path)))
    assert "unknown stage 'jugde': did you mean 'judge'?" in one_line(command("run", "demo", "--stage", "jugde"))


def test_a_data_folder_for_the_sample_questions(command: Command, tmp_path: Path) -> None:
    line = one_line(command("run", str(suite(tmp_path)), "--data-dir", str(tmp_path)))
    assert "is for the official questions, but these are the sample's" in line
    assert "does not exist: name a folder" in one_line(command("leaderboard", "from-lm-eval", "nowhere"))


def test_a_need_that_the_backend_lacks(command: Command, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    record = packages / "needy-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: needy\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[personalitybench.methods]\nneurons = needy:Needy\n")
    (packages / "needy.py").write_text(
        "from personalitybench.methods.none import Unprompted\n"
        "class Needy(Unprompted):\n    needs = frozenset({'intervention'})\n"
    )
    path = suite(tmp_path, method="needy/neurons")
    line = one_line(command("run", str(path), PYTHONPATH=str(packages)))
    assert "method 'needy/neurons' needs intervention, which backend 'dummy' cannot do" in line

    # One that the backend can only do if the model is loaded for it.
    needy = packages / "needy.py"
    needy.write_text(needy.read_text().replace("intervention", "adapter"))
    path.write_text(path.read_text().replace("backend: dummy", "backend: personalitybench-vllm"))
    line = one_line(command("run", str(path), PYTHONPATH=str(packages)))
    assert "needs adapter, which backend 'personalitybench-vllm' cannot do as this model is loaded" in line
    assert "in a suite, args: {enable_lora: true}" in line


def test_an_empty_question_file_and_a_corrupted_cache(command: Command, tmp_path: Path, official_files: Path) -> None:
    data = tmp_path / "data"
    (data / "test").mkdir(parents=True)
    (data / "test" / "Openness.json").write_text("")
    shutil.copy(official_files / "description.json", data)
    path = suite(tmp_path, source="official")
    assert "holds no question" in one_line(command("run", str(path), "--data-dir", str(data)))
    from personalitybench.downloads import COMMIT

    cached = tmp_path / "cache" / "official" / COMMIT / "NPTI" / "dataset" / "test"
    cached.mkdir(parents=True)
    (cached / "Openness.json").write_text("{}")
    line = one_line(command("run", str(path), PERSONALITYBENCH_CACHE=str(tmp_path / "cache")))
    assert "is corrupted" in line
    assert "delete it" in line


@pytest.mark.model
def test_a_corrupted_model_in_the_cache(command: Command, tmp_path: Path, demo_model: Path) -> None:
    copy = tmp_path / "cache" / "models" / demo_model.name
    copy.mkdir(parents=True)
    for path in demo_model.iterdir():
        if path.name != "model.safetensors":
            shutil.copy(path, copy)
    (copy / "model.safetensors").write_bytes(b"not the weights")
    line = one_line(command("model", "demo", PERSONALITYBENCH_CACHE=str(tmp_path / "cache")))
    assert "model.safetensors is corrupted" in line


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from personalitybench.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'lm_eval', 'numpy', 'pydantic', 'vllm', 'openai', "
        "'matplotlib', 'altair', 'vl_convert', 'jinja2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name",
    [
        "run",
        "fit",
        "doctor",
        "tasks",
        "methods",
        "judges",
        "model",
        "install-tasks",
        "leaderboard",
        "neurons",
        "artifacts",
    ],
)
def test_every_command_has_help(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_doctor_says_what_is_there_and_no_secret(command: Command) -> None:
    done = command("doctor", OPENAI_API_KEY="sk-planted-key", HF_TOKEN="")
    assert done.returncode == 0
    assert "sk-planted-key" not in done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert "OPENAI_API_KEY │ yes" in text
    assert "HF_TOKEN │ no" in text
    assert "personalitybench[vllm]" in text


def test_lists(command: Command) -> None:
    listed = command("methods").stdout
    assert all(name in listed for name in ("none", "simple", "p2", "few_shot"))
    assert "offline" in command("judges").stdout
    folder = Path(command("tasks").stdout.strip())
    assert (folder / "evaluate" / "personalitybench_openness_high.yaml").is_file()
    schema = json.loads(command("leaderboard", "schema").stdout)
    assert schema["title"] == "Leaderboard"


def test_a_wrong_option_of_lm_eval_is_one_line(command: Command) -> None:
    metadata = '{"method": "simpel"}'
    done = command("lm-eval", "--tasks", "personalitybench_openness_high", "--model", "dummy", "--metadata", metadata)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("personalitybench: unknown method 'simpel'")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "personalitybench", "targets"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert "No such command 'targets'" in done.stderr
