"""Identity of models by content: files of folders, our manifest, adapters and other files that arguments name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from personalitybench import files
from personalitybench.dry import dry_run
from personalitybench.errors import ModelError
from personalitybench.files import cached_sha256, sha256_file
from personalitybench.model_identity import MANIFEST, file_hashes, identify_folder, model_record
from personalitybench.models import DEMO_MODEL

DECIDING = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "pytorch_model.bin",
    "weights.gguf",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "modeling_mine.py",
    "code/deep/inner.py",
]
IRRELEVANT = [
    "README.md",
    "LICENSE.txt",
    "picture.png",
    ".git/HEAD",
    ".gitattributes",
    "optimizer.pt",
    "rng_state_0.pth",
    "training_args.bin",
    "trainer_state.json",
    "checkpoint-500/model.safetensors",
    "runs/events.out",
    "__pycache__/modeling_mine.cpython-311.pyc",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of every kind that decides an answer."""
    for name in DECIDING:
        write(tmp_path / "model" / name, "first")
    return tmp_path / "model"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def revision(folder: Path) -> str:
    return identify_folder(folder).revision


@pytest.mark.parametrize("name", DECIDING)
def test_each_file_that_decides_an_answer_changes_the_revision(folder: Path, name: str) -> None:
    before = revision(folder)
    write(folder / name, "other")
    changed = revision(folder)
    assert changed != before
    if name != "config.json":
        (folder / name).unlink()
        assert revision(folder) not in {before, changed}


@pytest.mark.parametrize("name", IRRELEVANT)
def test_documents_and_training_states_do_not_change_the_revision(folder: Path, name: str) -> None:
    before = revision(folder)
    write(folder / name, "anything")
    assert revision(folder) == before


def test_a_folder_that_only_moved_keeps_its_revision(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert revision(tmp_path / "elsewhere") == revision(folder)


def test_a_link_to_a_file_counts_as_the_file(folder: Path, tmp_path: Path) -> None:
    """Snapshots of the hub's cache consist of links."""
    before = revision(folder)
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert revision(folder) == before


def test_a_link_to_a_folder_within_the_model_counts_by_its_target(folder: Path) -> None:
    before = revision(folder)
    (folder / "templates").symlink_to("additional_chat_templates")
    inside = revision(folder)
    (folder / "templates").unlink()
    (folder / "templates").symlink_to("code")
    assert len({before, inside, revision(folder)}) == 3
    (folder / "code" / "loop").symlink_to("..")
    assert revision(folder)
    write(folder / ".hidden" / "other.jinja", "not hashed")
    (folder / "code" / "inner").symlink_to("../.hidden")
    with pytest.raises(ModelError, match="no part of the model"):
        identify_folder(folder)


@pytest.mark.parametrize("name", ["extra.json", "code/extra.bin"])
@pytest.mark.parametrize("kind", ["pipe", "device", "broken link", "link in a circle", "folder elsewhere"])
def test_what_is_no_regular_file_is_refused_in_one_line(
    folder: Path, name: str, kind: str, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    path = folder / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        targets = {"device": "/dev/zero", "broken link": "nowhere", "folder elsewhere": "/"}
        path.symlink_to(targets.get(kind, path.name))
    with pytest.raises(ModelError) as caught:
        identify_folder(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if name == "extra.json" and kind in {"pipe", "device"}:
        write(tmp_path / "s.yaml", f"name: s\nmodels: [{folder}]\nmethods: [none]\nfloors: false\n")
        done = command("run", "s.yaml", "--dry-run")
        assert (done.returncode, done.stdout) == (2, "")
        assert "is no regular file" in done.stderr


def test_a_file_is_hashed_once_as_long_as_nobody_touches_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[Path] = Counter()

    def counting(path: Path) -> str:
        hashed[path] += 1
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", counting)
    monkeypatch.setattr(files, "_FRESH_NS", -1)
    for _ in range(3):
        identify_folder(folder)
    assert set(hashed.values()) == {1}
    assert len(hashed) == len(DECIDING)
    path = folder / "vocab.txt"
    times = path.stat()
    write(path, "other")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cached_sha256(path) == sha256_file(path)
    replaced = tmp_path / "replaced"
    write(replaced, "third")
    replaced.replace(path)
    assert cached_sha256(path) == sha256_file(path)


def test_a_file_that_was_just_written_is_hashed_again(tmp_path: Path) -> None:
    """Two writes within a tick of the file system's clock have the same times."""
    path = tmp_path / "file"
    for text in ("one", "two", "six"):
        path.write_text(text)
        assert cached_sha256(path) == sha256_file(path)


def manifest(folder: Path, **changes: Any) -> None:
    about = {"name": "org/known", "revision": "known-1", "files": file_hashes(folder)}
    (folder / MANIFEST).write_text(json.dumps(about | changes))


def test_a_manifest_outside_our_cache_is_not_believed(folder: Path, cache: Path) -> None:
    plain = identify_folder(folder)
    manifest(folder)
    assert identify_folder(folder) == plain
    manifest(folder, files={})
    assert identify_folder(folder) == plain


def test_a_manifest_in_our_cache_is_believed_for_its_files_alone(folder: Path, cache: Path) -> None:
    ours = cache / "models" / "known"
    shutil.copytree(folder, ours)
    manifest(ours)
    assert (identify_folder(ours).name, identify_folder(ours).revision) == ("org/known", "known-1")
    with dry_run():
        assert identify_folder(ours).name == "org/known"
    (ours / "README.md").write_text("about")
    assert identify_folder(ours).name == "org/known"
    write(ours / "additional_chat_templates" / "other.jinja", "added")
    assert identify_folder(ours).name == "known"
    manifest(ours)
    write(ours / "model.safetensors", "trained")
    assert identify_folder(ours).name == "known"
    for wrong in ("[]", "{", '{"files": 3}', '{"name": "x"}'):
        (ours / MANIFEST).write_text(wrong)
        assert identify_folder(ours).name == "known"


@pytest.mark.model
def test_a_copy_of_the_demo_model_is_not_the_demo_model(demo_model: Path, tmp_path: Path) -> None:
    assert identify_folder(demo_model).name == DEMO_MODEL.hub_id
    copied = tmp_path / "mine"
    shutil.copytree(demo_model, copied)
    identity = identify_folder(copied)
    assert identity.name == "mine"
    assert identity.revision.startswith("sha256:")


@pytest.mark.model
def test_a_run_of_many_calls_hashes_a_model_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A12: ten calls, each of which names its folder, its fit and its record by the model."""
    from personalitybench.runs.plan import make_plan
    from personalitybench.runs.suite import load_suite

    hashed: Counter[Path] = Counter()

    def counting(path: Path) -> str:
        hashed[path] += 1
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", counting)
    monkeypatch.setattr(files, "_HASHES", {})
    suite = tmp_path / "s.yaml"
    write(suite, f"name: s\nmodels: [{tiny_model}]\nmethods: [none, p2]\nseeds: [0, 1, 2, 3, 4]\nfloors: false\n")
    assert len(make_plan(load_suite(str(suite)), tmp_path / "run").calls) == 10
    assert {path: number for path, number in hashed.items() if number > 1} == {}
    assert hashed[tiny_model / "model.safetensors"] == 1


# Arguments that name files


def record(folder: Path, **args: Any) -> dict[str, str]:
    return model_record("hf", {"pretrained": str(folder), **args})


@pytest.fixture
def adapters(tmp_path: Path) -> list[str]:
    for name in ("ada", "adb"):
        write(tmp_path / name / "adapter_config.json", "{}")
        write(tmp_path / name / "adapter_model.safetensors", name)
    return [str(tmp_path / "ada"), str(tmp_path / "adb")]


@pytest.mark.parametrize("key", ["peft", "delta", "tokenizer", "lora_local_path", "custom_template"])
def test_what_an_argument_names_is_part_of_the_revision_by_content(
    folder: Path, adapters: list[str], key: str, tmp_path: Path
) -> None:
    base, one, other = record(folder), record(folder, **{key: adapters[0]}), record(folder, **{key: adapters[1]})
    assert len({found["revision"] for found in (base, one, other)}) == 3
    shutil.copytree(adapters[0], tmp_path / "moved")
    assert record(folder, **{key: str(tmp_path / "moved")})["revision"] == one["revision"]
    write(Path(adapters[0]) / "adapter_model.safetensors", "trained on")
    assert record(folder, **{key: adapters[0]})["revision"] != one["revision"]


def test_fits_of_two_adapters_are_two(folder: Path, adapters: list[str], tmp_path: Path) -> None:
    from personalitybench.runs.call_folders import CallFolders
    from personalitybench.runs.store import RunFolder
    from personalitybench.runs.suite import load_suite

    models = [{"name": str(folder)}, *({"name": str(folder), "args": {"peft": path}} for path in adapters)]
    methods = [{"name": "npti", "strengths": [1.0]}]
    write(tmp_path / "s.yaml", json.dumps({"name": "s", "models": models, "methods": methods}))
    suite = load_suite(str(tmp_path / "s.yaml"))
    labels = [CallFolders(suite, RunFolder(tmp_path)).fit(call).label for call in suite.calls()]
    assert len(set(labels)) == 3
    write(Path(adapters[1]) / "adapter_model.safetensors", "trained on")
    assert CallFolders(suite, RunFolder(tmp_path)).fit(list(suite.calls())[2]).label not in labels


def test_adapted_models_are_called_by_their_adapters(folder: Path, adapters: list[str]) -> None:
    assert record(folder, peft=adapters[0])["name"] == "model+ada"
    assert record(folder, tokenizer=adapters[0])["name"] == "model"


def test_files_within_lists_and_mappings_count(folder: Path, adapters: list[str]) -> None:
    one = record(folder, speculative={"model": adapters[0], "tokens": 5})
    other = record(folder, speculative={"model": adapters[1], "tokens": 5})
    assert len({found["revision"] for found in (record(folder), one, other)}) == 3
    assert record(folder, adapters=[adapters[0]]) != record(folder, adapters=[adapters[1]])


@pytest.mark.parametrize(
    "args", [{"gguf_file": "a.gguf"}, {"load_in_4bit": True}, {"enable_thinking": False}, {"peft": "org/adapter"}]
)
def test_arguments_that_change_weights_or_prompts_are_part_of_the_revision(folder: Path, args: dict[str, Any]) -> None:
    assert record(folder, **args)["revision"] != record(folder)["revision"]


@pytest.mark.parametrize(
    "args",
    [
        {"dtype": "float32"},
        {"device": "cpu"},
        {"peft": None},
        {"load_in_4bit": False},
        {"enable_thinking": None},
        {"cache_dir": "."},
    ],
)
def test_other_arguments_are_not(folder: Path, args: dict[str, Any]) -> None:
    assert record(folder, **args) == record(folder)


def test_an_adapter_of_the_hub_has_the_commit_that_is_recorded(folder: Path) -> None:
    args = {"pretrained": str(folder), "peft": "org/adapter"}
    assert model_record("hf", args, None, {"peft": "c0ffee"})["revision"].endswith("+peft=org/adapter@c0ffee")
    assert model_record("hf", args, None, {})["revision"].endswith("+peft=org/adapter@unstated")


def test_a_folder_that_holds_an_adapter_counts_with_its_base(folder: Path, tmp_path: Path) -> None:
    """transformers loads the weights of ``base_model_name_or_path`` for a folder with an adapter_config.json."""
    adapted = tmp_path / "adapted"
    write(adapted / "config.json", "{}")
    write(adapted / "adapter_config.json", json.dumps({"base_model_name_or_path": str(folder)}))
    before = revision(adapted)
    write(folder / "model.safetensors", "trained")
    assert revision(adapted) != before


@pytest.mark.model
def test_rows_of_a_model_and_of_two_adapters_are_three(
    tiny_model: Path, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """F05, with adapters that peft saved; the last one is taken from lm-eval's results as well."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for seed, name in enumerate(("ada", "adb")):
        import torch

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"]))
        adapted.save_pretrained(tmp_path / name)
    models = "\n".join(
        f"  - {{name: {tiny_model}, batch_size: 2, device: cpu, args: {{dtype: float32{peft}}}}}"
        for peft in ("", ", peft: ./ada", ", peft: ./adb")
    )
    write(
        tmp_path / "s.yaml",
        f"name: s\nmodels:\n{models}\nmethods: [none]\ntargets: ['extraversion:high']\nquestions: {{limit: 2}}\n"
        "protocol: {max_tokens: 4}\nfloors: false\n",
    )
    done = command("run", "s.yaml", "--output", "r")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "r" / "leaderboard.json").read_text())["rows"]
    assert len({row["id"] for row in rows}) == 3
    assert {row["identity"]["model"]["name"] for row in rows} == {"tiny-llama", "tiny-llama+ada", "tiny-llama+adb"}

    from personalitybench.tasks import tasks_folder

    asked = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--include_path", str(tasks_folder()), "--model", "hf"),
            *("--model_args", f"pretrained={tiny_model},dtype=float32,peft=./adb", "--device", "cpu"),
            *("--tasks", "personalitybench_extraversion_high", "--limit", "2", "--batch_size", "2"),
            *("--apply_chat_template", "--log_samples", "--output_path", "out"),
            *("--metadata", json.dumps({"method": "none", "judge": "offline", "max_tokens": 4})),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    done = command("leaderboard", "from-lm-eval", "out", "--output", "board", "--no-floors")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "board" / "leaderboard.json").read_text())["rows"]
    assert row["id"] in {row["id"] for row in rows if row["identity"]["model"]["name"] == "tiny-llama+adb"}


@pytest.mark.parametrize(
    "changed",
    [
        {"num_hidden_layers": 1},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"hf_overrides": {"rope_theta": 1e6}},
        {"load_format": "dummy"},
        {"tokenizer_revision": "abc"},
        {"tokenizer_mode": "mistral"},
    ],
)
def test_arguments_that_replace_settings_of_the_weights_are_in_the_revision(changed: dict[str, Any]) -> None:
    plain = model_record("vllm", {"pretrained": "org/m"}, "abc")
    other = model_record("vllm", {"pretrained": "org/m", **changed}, "abc")
    assert other["name"] == plain["name"]
    assert other["revision"] != plain["revision"]
