"""Which model a name means: folders, a hub (a real HTTP server on loopback), and the package of the demo model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.model_identity import identify_folder
from personalitybench.models import DEMO_MODEL, resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BODY = json.dumps({"model_type": "llama"}).encode()


class HubHandler(BaseHTTPRequestHandler):
    """The two calls with which the hub's client fetches a file."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if self.path.startswith("/somebody/slow/"):
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
            try:
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.2)
            except OSError:
                pass
            return
        known = self.path.startswith("/somebody/model/resolve/") and self.path.endswith("config.json")
        self.send_response(200 if known else 404)
        if known:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", str(len(BODY)))
        else:
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()
        if body and known:
            self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def resolve_in_process(name: str, tmp_path: Path, before: str = "", **environment: str) -> str:
    """The hub's client reads its environment when it is imported, so it gets a process of its own."""
    code = (
        "import sys\n"
        f"{before}\n"
        "from personalitybench.errors import PersonalityBenchError as ModelError\n"
        "from personalitybench.models import resolve_model\n"
        "try:\n    found = resolve_model(sys.argv[1])\n    print(found.location, found.identity.revision)\n"
        "except ModelError as error:\n    print('ModelError', error)\n"
    )
    known = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        capture_output=True,
        text=True,
        check=True,
        env=known | {"HF_HOME": str(tmp_path / "hf")} | environment,
        timeout=300,
    )
    return done.stdout.strip()


def test_a_model_of_the_hub_is_known_by_its_commit(hub: str, tmp_path: Path) -> None:
    assert resolve_in_process("somebody/model", tmp_path, HF_ENDPOINT=hub) == f"somebody/model {COMMIT}"
    # Once seen it is known without the hub.
    assert resolve_in_process("somebody/model", tmp_path, HF_HUB_OFFLINE="1") == f"somebody/model {COMMIT}"


def test_a_model_that_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    said = resolve_in_process("somebody/nothing", tmp_path, HF_ENDPOINT=hub)
    assert said.startswith("ModelError model 'somebody/nothing' is neither a folder nor to be had from the hub")


def test_a_hub_that_trickles_ends_with_one_line(hub: str, tmp_path: Path) -> None:
    limit = (
        "from personalitybench import hub\nfrom personalitybench.transfers import Limits\n"
        "hub.COMMIT_LIMITS = Limits(total=1.0, rate=None)"
    )
    said = resolve_in_process("somebody/slow", tmp_path, limit, HF_ENDPOINT=hub)
    assert "the hub's answer for 'somebody/slow' took more than 1 s: check the network and HF_ENDPOINT" in said


def test_a_slow_file_of_the_hub_is_not_read_for_ever(hub: str, tmp_path: Path) -> None:
    code = (
        "from personalitybench import hub\nfrom personalitybench.transfers import Limits\n"
        "hub.FILE_LIMITS = Limits(total=60.0, rate=1e9, window=0.0)\n"
        "hub.limit_downloads()"
    )
    said = resolve_in_process("somebody/model", tmp_path, code, HF_ENDPOINT=hub)
    assert "config.json sent" in said
    assert "check the network and HF_ENDPOINT, or name a local folder" in said


@pytest.mark.model
def test_the_demo_model_comes_from_its_package_where_there_is_no_hub(demo_model: Path, tmp_path: Path) -> None:
    found = resolve_in_process(DEMO_MODEL.hub_id, tmp_path, HF_HUB_OFFLINE="1")
    assert found == f"{demo_model} {DEMO_MODEL.package}:{DEMO_MODEL.sha256[:12]}"


@pytest.mark.model
def test_the_demo_model_answers(demo_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model)
    assert model.config.num_hidden_layers == 30
    assert model.config.intermediate_size == 1536
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**tokens, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][tokens["input_ids"].shape[1] :])


def test_a_folder_is_known_by_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        identify_folder(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    first = resolve_model(str(folder))
    assert first.identity.name == "my-model"
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert resolve_model(str(folder)).identity.revision != first.identity.revision


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'demo'"):
        resolve_model("dem")
    with pytest.raises(ModelError, match="does not exist"):
        resolve_model(str(tmp_path / "nothing"))
