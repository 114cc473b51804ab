"""What real calls of lm_eval leave in a folder, several calls in one process: its imports take longer than the rest."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalitybench.tasks import tasks_folder
from tests.chat_server import ChatServer

_RUN = """
import json, sys
from lm_eval.__main__ import cli_evaluate
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
"""


def run_lm_eval(folder: Path, calls: Mapping[str, Mapping[str, Any]], **environment: str) -> None:
    """Have a served model answer two questions of both poles of extraversion.

    Args:
        folder: Where a folder is made for each call.
        calls: The metadata of each call.
        environment: Further variables.
    """
    with ChatServer(answer=made_up_answer) as server:
        _call(
            [_arguments(server.url, folder / name, metadata) for name, metadata in calls.items()], folder, environment
        )


def made_up_answer(body: Mapping[str, Any]) -> str:
    """An answer that differs with the prompt."""
    digest = hashlib.sha256(str(body["messages"]).encode()).hexdigest()
    return f"I would call {int(digest, 16) % 97} friends and go out with them, {digest[:4]} times if need be."


def _arguments(url: str, output: Path, metadata: Mapping[str, Any]) -> list[str]:
    return [
        *("--include_path", str(tasks_folder()), "--tasks", "personalitybench_extraversion"),
        *("--model", "local-chat-completions", "--model_args", f"model=some-model,base_url={url}/chat/completions"),
        *("--apply_chat_template", "--limit", "2", "--log_samples", "--output_path", str(output)),
        *("--metadata", json.dumps({"source": "sample", "max_tokens": 32, **metadata})),
    ]


def _call(arguments: list[list[str]], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"OPENAI_API_KEY": "sk-not-a-key"} | environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
