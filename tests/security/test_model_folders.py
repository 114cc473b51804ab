"""Model folders and arguments that cannot be loaded end with one line: run, dry run, fit and a judge's model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from rich.console import Console
from safetensors.torch import load_file, save_file

from personalitybench.backends.loading import load_model, model_arguments
from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.runs.command import run_suite
from personalitybench.runs.plan_models import PlannedModel
from personalitybench.runs.suite import ModelSpec

pytestmark = pytest.mark.model


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(os.getcwd))


def add_index(folder: Path) -> None:
    shard = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shard))


def make_socket(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind("extra.json")
    finally:
        os.chdir(here)


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


WEIGHTS = "model.safetensors"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "git lfs pull",
    ),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 500_000), "is truncated: it has 500,000 bytes"),
    "truncated header": (lambda f: os.truncate(f / WEIGHTS, 100), "is truncated or is no safetensors file"),
    "empty": (lambda f: os.truncate(f / WEIGHTS, 0), "is truncated or is no safetensors file"),
    "a page of HTML": (lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><p>404"), "is no safetensors file"),
    "pickle": (to_pickle, "is a pickle"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "missing shard": (add_index, "names model-00001-of-00002.safetensors, which is missing"),
    "brackets": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON object"),
    "brackets elsewhere": (lambda f: (f / "generation_config.json").write_text("[" * 100_000), "is not JSON"),
    "no tokenizer": (without_tokenizer, "has no tokenizer"),
    "pipe": (lambda f: os.mkfifo(f / "extra.json"), "is no regular file"),
    "device": (lambda f: (f / "extra.json").symlink_to("/dev/zero"), "is no regular file"),
    "socket": (make_socket, "is no regular file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_folder_is_refused_without_loading(tiny_model: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    change, says = FAULTS[fault]
    change(folder)
    for resolve in (
        lambda: load_model("hf", model_arguments("hf", str(folder), None, {})[0], 1, "cpu"),
        lambda: PlannedModel(ModelSpec(name=str(folder))),
    ):
        with pytest.raises(ModelError) as raised:
            resolve()
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hidden_size": 48}, "other shapes than config.json says"),
        ({"num_hidden_layers": 3}, r"lack weights that config.json asks for, such as model\.layers\."),
        ({"num_attention_heads": 0}, "cannot load model"),
        ({"model_type": "no-such-model"}, "cannot load model"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    edit(folder / "config.json", **config)
    with pytest.raises(ModelError, match=says) as raised:
        load_model("hf", model_arguments("hf", str(folder), None, {})[0], 1, "cpu")
    assert "\n" not in str(raised.value)


def test_a_tensor_that_is_missing_is_not_drawn_at_random(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match=r"such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model("hf", {"pretrained": str(folder)}, 1, "cpu")


@pytest.mark.parametrize(
    ("dtype", "meant"),
    [
        ("bf16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("torch.float16", "float16"),
        ("int3", "bfloat16, float16 or float32"),
    ],
)
def test_a_dtype_that_torch_does_not_have(tiny_model: Path, dtype: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"dtype '{dtype}' is no type of torch: write {meant}"):
        model_arguments("hf", str(tiny_model), None, {"dtype": dtype})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": "(.*)*(.*)*(.*)*x$"}, "may take too long"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"(": 4}}, "is no regular expression"),
    ],
)
def test_adapters_of_lm_eval_s_argument_are_checked(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    with pytest.raises(ModelError, match=says):
        load_model("hf", {"pretrained": str(tiny_model), "peft": str(tmp_path)}, 1, "cpu")


def test_an_adapter_that_is_a_pickle_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(ModelError, match="is a pickle"):
        load_model("hf", {"pretrained": str(tiny_model), "peft": str(tmp_path)}, 1, "cpu")


@pytest.mark.parametrize("arguments", [["run"], ["run", "--dry-run"], ["fit"], ["judge"]])
def test_commands_end_with_one_line(tiny_model: Path, tmp_path: Path, arguments: list[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    FAULTS["pointer"][0](folder)
    suite = tmp_path / "suite.yaml"
    model, judge = (tiny_model, tmp_path / "judge.yaml") if arguments == ["judge"] else (folder, "offline")
    (tmp_path / "judge.yaml").write_text(
        f"id: mine\nprovider: local-logits\nsummary: a test\nsettings: {{model: {folder}, rubric: direct}}\n"
    )
    suite.write_text(
        f"name: s\nmodels: [{{name: {model}, args: {{dtype: float32}}}}]\nmethods: [none]\njudges: ['{judge}']\n"
        "targets: [openness:high]\nquestions: {limit: 1}\nprotocol: {max_tokens: 2}\nfloors: false\n"
    )
    if arguments == ["fit"]:
        command = ["fit", "npti", "--model", str(folder)]
    else:
        command = ["run", str(suite), "--output", str(tmp_path / "run"), *arguments[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "personalitybench.cli", *command],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "git lfs pull" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_last_model_is_refused_before_the_first_answers(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    FAULTS["pointer"][0](folder)
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"name: s\nmodels: [{{name: {tiny_model}}}, {{name: {folder}}}]\nmethods: [none]\ntargets: [openness:high]\n"
        "questions: {limit: 1}\nprotocol: {max_tokens: 2}\nfloors: false\n"
    )
    with pytest.raises(ModelError, match="git lfs pull"):
        run_suite(str(suite), tmp_path / "run", ["generate"], Console(quiet=True))
    assert not list((tmp_path / "run").rglob("answers.jsonl"))
