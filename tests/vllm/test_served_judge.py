"""A real model behind a real OpenAI-compatible server (vLLM's own) as judge: rubric, client, store and parser at work.

The demo model is too small to judge anything; what it replies is read all the same, or said to be unreadable.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from personalitybench.judging import Rating, RatingRequest, rate_all
from personalitybench.judging.base import JudgeProfile
from personalitybench.judging.chat_judge import ChatJudge
from personalitybench.models import DEMO_MODEL, packaged_folder

UNREADABLE = {"no-rating", "not-a-rating", "out-of-range", "truncated", "empty"}
ITEMS = [
    RatingRequest("A friend asks you to a party of strangers. What do you do?", answer, aspect)
    for answer in ("I would go at once and talk to everybody there.", "I would stay at home and read a book alone.")
    for aspect in ("extraversion", "fluency")
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a server with the demo model."""
    model: Path = packaged_folder(DEMO_MODEL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
                *("--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port)),
                *("--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager"),
            ],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _judge(url: str, **settings: object) -> ChatJudge:
    whole = {"model": "judge", "base_url": url, "sampling": {"temperature": 0, "max_tokens": 60, "seed": 0}} | settings
    profile = {"id": "served", "provider": "chat", "summary": "", "settings": whole, "client": {"timeout": 300}}
    return ChatJudge(JudgeProfile.model_validate(profile))


@pytest.mark.usefixtures("cache")
def test_a_served_model_rates(served: str) -> None:
    judge = _judge(served)
    first = rate_all(judge, ITEMS)
    assert all(isinstance(found, Rating) or found.reason in UNREADABLE for found in first), first
    asked = judge.spending.calls
    assert asked >= 1
    assert judge.spending.prompt_tokens > 200 * asked, "the server counted a rubric in every request"
    again = _judge(served)
    assert [found for found in rate_all(again, ITEMS) if isinstance(found, Rating)] == [
        found for found in first if isinstance(found, Rating)
    ]
    assert again.spending.calls <= asked - sum(isinstance(found, Rating) for found in first)


@pytest.mark.usefixtures("cache")
def test_a_served_model_that_may_only_rate(served: str) -> None:
    """vLLM's guided choice leaves the model no way but a rating: every answer has one."""
    choice = {"choice": [f"[[{rating}]]" for rating in range(1, 6)]}
    judge = _judge(served, sampling={"temperature": 0, "max_tokens": 8, "structured_outputs": choice})
    found = rate_all(judge, ITEMS)
    assert all(isinstance(verdict, Rating) for verdict in found), found
    assert judge.spending.calls == len(ITEMS)
