"""The wheel carries all that the package needs, and a plug-in package is found by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def run(*arguments: str, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=600, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY))
    (path,) = folder.glob("*.whl")
    return path


def install(what: Path, folder: Path) -> dict[str, str]:
    """Install without dependencies into a folder, and put that folder before everything else."""
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    run(*command, str(what))
    return os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200", "TQDM_DISABLE": "1"}


def test_the_wheel_is_complete_and_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    bundled = "personalitybench/_bundled"
    for name in (
        "tasks/evaluate/_personalitybench.yaml",
        "tasks/sample/test/Openness.json",
        "judges/offline.yaml",
        "judges/prices/table.yaml",
        "judges/offline/heads.safetensors",
        "judges/rubrics/project.yaml",
        "judges/attacks/collection.yaml",
        "harness/demo.yaml",
        "leaderboards/page.html.j2",
        "leaderboards/neurons.html.j2",
        "leaderboards/style.css",
        "leaderboards/paper/llama-3-8b-instruct.json",
    ):
        assert f"{bundled}/{name}" in names
    assert "personalitybench/py.typed" in names
    assert not any(name.startswith(("tests/", "lm_eval/")) for name in names), "nothing outside our own package"
    assert wheel.stat().st_size < 2_000_000


@pytest.mark.slow
@pytest.mark.model
def test_the_wheel_works_from_an_empty_folder(wheel: Path, tmp_path: Path, demo_model: Path) -> None:
    environment = install(wheel, tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()

    def command(*arguments: str) -> str:
        return run("-m", "personalitybench.cli", *arguments, cwd=empty, env=environment)

    assert Path(command("tasks").strip()).is_relative_to(tmp_path / "site")
    assert "few_shot" in command("methods")
    assert "offline" in command("doctor")
    # The bundled demo, cut to a few answers so that it takes seconds.
    text = next((tmp_path / "site").rglob("harness/demo.yaml")).read_text()
    small = text.replace("max_tokens: 64", "max_tokens: 4").replace("half: test", "half: test\n  limit: 1")
    identification = "questions: all, max_tokens: 48, batch_size: 36, shards: 6"
    assert identification in small
    small = small.replace(identification, "questions: 4, max_tokens: 4, batch_size: 4, shards: 2")
    (empty / "small.yaml").write_text(small)
    assert "leaderboard.json" in command("run", "small.yaml")
    assert (empty / "runs" / "demo" / "index.html").is_file()


def test_a_method_of_another_package(tmp_path: Path) -> None:
    environment = install(REPOSITORY / "tests" / "example_package", tmp_path / "site")
    environment["PYTHONPATH"] += os.pathsep + str(REPOSITORY)
    listed = run("-m", "personalitybench.cli", "methods", cwd=tmp_path, env=environment)
    assert "personalitybench-example/diary" in listed
    code = (
        "from personalitybench.methods import MethodContext, create_method\n"
        "from personalitybench.prompts import load_wording\n"
        "from personalitybench.questions import Question, open_source\n"
        "from personalitybench.traits import Target\n"
        "source = open_source('sample')\n"
        "method = create_method('personalitybench-example/diary', {}, MethodContext(load_wording('project'), source))\n"
        "question = Question.from_row(source.questions('evaluate', 'openness')[0])\n"
        "print(method.induce(Target.parse('openness:low'), None, question).render(question.question))"
    )
    prompt = run("-c", code, cwd=tmp_path, env=environment)
    assert prompt.startswith("This is the diary of a closed person.")
    assert "Nobody else will ever read it." in prompt


def test_the_core_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors', 'vllm', 'ray', 'altair', 'vl_convert'):\n"
        "    sys.modules[name] = None\n"  # importing them fails from here on
        "import personalitybench.runs.command, personalitybench.doctor, personalitybench.leaderboard.render\n"
        "from personalitybench.errors import MissingDependencyError\n"
        "from personalitybench.judging.features import AnswerReader\n"
        "try:\n    AnswerReader()\nexcept MissingDependencyError as error:\n    print(error)"
    )
    assert "pip install 'personalitybench[hf]'" in run("-c", code)
