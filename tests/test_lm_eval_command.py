"""The three ways into lm-eval, each with the real lm-eval command line on a real (small) model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from personalitybench.lm_eval_entry import lm_eval_tasks_folder
from personalitybench.tasks import tasks_folder
from tests.chat_server import ChatServer as JudgeServer

pytestmark = pytest.mark.model

METADATA = {"method": "simple", "judge": "offline", "max_tokens": 12}


def lm_eval(*arguments: str, module: str = "lm_eval", cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OPENAI_API_KEY": "sk-not-a-key", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=900,
        check=False,
    )


def common(model: Path, output: Path, limit: int = 1, **metadata: Any) -> list[str]:
    return [
        *("--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"),
        *("--batch_size", "8", "--apply_chat_template", "--limit", str(limit)),
        *("--metadata", json.dumps(METADATA | metadata)),
        *("--output_path", str(output), "--log_samples"),
    ]


def results(output: Path) -> dict[str, Any]:
    (path,) = output.rglob("results_*.json")
    written: dict[str, Any] = json.loads(path.read_text())
    for key in ("results", "configs"):  # lm-eval 0.5 puts the group before the name
        written[key] = {name.rpartition("::")[2]: value for name, value in written[key].items()}
    return written


def test_include_path(demo_model: Path, tmp_path: Path) -> None:
    done = lm_eval(
        *("--include_path", str(tasks_folder()), "--tasks", "personalitybench"),
        *common(demo_model, tmp_path / "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(tmp_path / "out")["results"]
    for name in ("personalitybench", "personalitybench_openness", "personalitybench_openness_high"):
        for metric in ("trait_score", "fluency", "unrated", "words", "distinct_2", "repetition", "unfinished"):
            assert f"{metric},offline" in found[name], (name, metric)
        assert 1 <= found[name]["trait_score,offline"] <= 5
    leaves = [found[name]["unrated,offline"] for name in found if name.endswith(("_high", "_low"))]
    assert len(leaves) == 10
    assert found["personalitybench"]["unrated,offline"] == sum(leaves)
    assert "trait_score" in done.stdout
    assert "offline" in done.stdout


def test_our_command_line(demo_model: Path, tmp_path: Path) -> None:
    done = lm_eval(
        "lm-eval",
        *("--tasks", "personalitybench_agreeableness"),
        *common(demo_model, tmp_path / "out"),
        module="personalitybench.cli",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "personalitybench_agreeableness_low" in results(tmp_path / "out")["results"]


def test_installed_tasks_and_the_bare_command(demo_model: Path, tmp_path: Path) -> None:
    folder = lm_eval_tasks_folder() / "personalitybench"
    before = sorted(path.name for path in folder.parent.iterdir())
    assert not folder.exists(), f"{folder} is left from another installation"
    install = lm_eval("install-tasks", module="personalitybench.cli", cwd=tmp_path)
    try:
        assert install.returncode == 0, install.stderr
        assert len(list(folder.rglob("*.yaml"))) == len(list(tasks_folder().rglob("*.yaml")))
        done = lm_eval(
            *("--tasks", "personalitybench_neuroticism_low"), *common(demo_model, tmp_path / "out"), cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "trait_score,offline" in results(tmp_path / "out")["results"]["personalitybench_neuroticism_low"]
        note = folder / "note.txt"
        note.write_text("a file of the user's")
    finally:
        lm_eval("install-tasks", "--uninstall", module="personalitybench.cli", cwd=tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["note.txt"], "only our files are taken away"
    note.unlink()
    folder.rmdir()
    assert sorted(path.name for path in folder.parent.iterdir()) == before


def test_dummy(tmp_path: Path) -> None:
    done = lm_eval(
        *("--include_path", str(tasks_folder()), "--tasks", "personalitybench_openness", "--model", "dummy"),
        *("--metadata", json.dumps({"method": "none", "judge": "offline"}), "--limit", "2"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "add --apply_chat_template" in done.stderr
    found = results(tmp_path / "out")["results"]["personalitybench_openness"]
    assert found["words,offline"] == 1.0
    assert found["unfinished,offline"] == 1.0


def test_several_judges_give_several_columns(chat_server: JudgeServer, tmp_path: Path) -> None:
    """One of them behind a server and named by its file: columns go by the id, and no path is in the results."""
    profile = tmp_path / "profile-of-mine.yaml"
    settings = {"model": "small", "base_url": chat_server.url, "sampling": {"temperature": 0}}
    profile.write_text(json.dumps({"id": "served", "provider": "chat", "summary": "for tests", "settings": settings}))
    chat_server.answer = lambda body: "It says little. [[4]]"

    def run(*judges: str) -> subprocess.CompletedProcess[str]:
        return lm_eval(
            *("--include_path", str(tasks_folder()), "--tasks", "personalitybench_openness", "--model", "dummy"),
            *("--metadata", json.dumps({"method": "none", "judge": judges}), "--limit", "2"),
            *("--output_path", str(tmp_path / "out"), "--log_samples"),
            cwd=tmp_path,
        )

    done = run("offline", str(profile))
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(tmp_path / "out")
    high, low = (found["results"][f"personalitybench_openness_{pole}"] for pole in ("high", "low"))
    assert (high["trait_score,served"], low["trait_score,served"], high["fluency,served"]) == (4.0, 2.0, 4.0)
    assert 1 <= high["trait_score,offline"] <= 5
    recorded = found["configs"]["personalitybench_openness_high"]["metadata"]["personalitybench"]["judges"]
    assert list(recorded) == ["offline", "served"]
    copy = tmp_path / "copy.yaml"
    copy.write_text(profile.read_text())
    twice = run(str(copy), str(profile))
    assert twice.returncode != 0
    assert "have the same id 'served'" in twice.stderr


class ChatServer(ThreadingHTTPServer):
    """An OpenAI-compatible server that refuses settings which the OpenAI API does not have."""

    daemon_threads = True
    bodies: list[dict[str, Any]]


class ChatHandler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if "repetition_penalty" in body:
            self.send_error(400, "unknown parameter repetition_penalty")
            return
        message = {"role": "assistant", "content": "I would stay at home and read. It suits me."}
        answer = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


def test_chat_api(tmp_path: Path) -> None:
    server = ChatServer(("127.0.0.1", 0), ChatHandler)
    server.bodies = []
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    done = lm_eval(
        *("--include_path", str(tasks_folder()), "--tasks", "personalitybench_openness_low"),
        *("--model", "local-chat-completions", "--model_args", f"model=some-model,base_url={url},num_concurrent=2"),
        *("--apply_chat_template", "--limit", "2", "--metadata", json.dumps(METADATA)),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
        cwd=tmp_path,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(server.bodies) == 2
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["user"]
    identity = results(tmp_path / "out")["configs"]["personalitybench_openness_low"]["metadata"]["personalitybench"]
    protocol = identity["identity"]["protocol"]
    assert protocol["left_out"] == ["repetition_penalty"]
    assert protocol["repetition_penalty"] is None
