"""Secrets given as arguments: refused when they are read, never printed and never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from personalitybench.argument_policy import refuse_secrets, refuse_secrets_in_text
from personalitybench.backends.loading import load_model
from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.failures import describe_failure, format_traceback
from personalitybench.judging.base import load_profile
from personalitybench.leaderboard.lm_eval_results import provenance
from personalitybench.lm_eval_entry import run_lm_eval
from personalitybench.redaction import is_secret, redact
from personalitybench.runs.suite import load_suite
from tests.security.terminal import one_line, run_command

PLANTED = "planted-4711"

SUITE = """
name: mine
models: [{name: nothing, backend: dummy, args: %s}]
methods: [none]
targets: ['openness:high']
questions: {limit: 1}
floors: false
"""


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ("{token: planted-4711}", "token"),
        ("{auth_token: planted-4711}", "auth_token"),
        ("{hf_token: planted-4711}", "hf_token"),
        ("{API-Key: planted-4711}", "API-Key"),
        ("{header: {Authorization: Bearer planted-4711}}", "header.Authorization"),
        ("{model_kwargs: {nested: [{password: planted-4711}]}}", "model_kwargs.nested.0.password"),
        ("{base_url: 'http://me:planted-4711@host/v1'}", "base_url"),
        ("{base_url: 'http://host/v1?api_key=planted-4711'}", "base_url"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_suite_with_a_secret_is_refused_by_its_name(args: str, name: str, dry: bool, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SUITE % args)
    with pytest.raises(ConfigurationError, match="environment variable") as refused:
        load_suite(str(path))
    assert repr(name) in str(refused.value)
    assert PLANTED not in str(refused.value)
    if name in {"token", "base_url"}:
        done = run_command("run", "s.yaml", *(["--dry-run"] if dry else []), cwd=tmp_path)
        assert PLANTED not in one_line(done) + done.stdout
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("args", ["token: planted-4711", "[token=planted-4711]", "'token=planted-4711'"])
def test_arguments_of_another_form_are_not_quoted(args: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SUITE.replace("{name: nothing, backend: dummy, args: %s}", "{name: x, args: %s}") % args)
    with pytest.raises(ConfigurationError) as refused:
        load_suite(str(path))
    assert PLANTED not in str(refused.value)


@pytest.mark.parametrize(
    "part", ["settings: {model: m, args: {token: planted-4711}}", "client: {api_key: planted-4711}"]
)
def test_a_profile_with_a_secret_is_refused(part: str, tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_text(f"id: j\nprovider: chat\nsummary: s\n{part}\n")
    with pytest.raises(ConfigurationError, match="environment variable") as refused:
        load_profile(str(path))
    assert PLANTED not in str(refused.value)


@pytest.mark.parametrize("command", [("fit", "npti"), ("methods", "check", "npti")])
def test_a_command_with_a_secret_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    done = run_command(*command, "--model", "x", "--model-args", f"dtype=float32,token={PLANTED}", cwd=tmp_path)
    assert "'token' is a secret" in one_line(done)
    assert PLANTED not in done.stderr + done.stdout


def test_what_cannot_be_loaded_is_named_without_the_values_of_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as refused:
        load_model("hf", {"pretrained": str(tmp_path), "token": PLANTED, "dtype": "float32"}, 1, "cpu")
    assert str(tmp_path) in str(refused.value)
    assert "dtype, token" in str(refused.value)
    assert PLANTED not in str(refused.value)


def test_secrets_of_imported_results_are_redacted() -> None:
    args: dict[str, Any] = {"auth_token": PLANTED, "header": {"Authorization": f"Bearer {PLANTED}"}, "dtype": "float32"}
    found = provenance("hf", args | {"model_kwargs": {"token": PLANTED}}, 1, {}, None, untried=[])
    assert PLANTED not in found.model_dump_json()
    assert found.backend_args["dtype"] == "float32"


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "eos_token", "think_end_token", "add_bos_token", "prefix_token_id", "key_cache", "api_key_env",
     "tokenizer", "num_key_value_heads", "max_gen_toks"],
)  # fmt: skip
def test_names_of_no_secret_are_taken(name: str) -> None:
    assert not is_secret(name)
    assert refuse_secrets({name: "value"}) == {name: "value"}


def test_a_flag_is_no_secret() -> None:
    assert refuse_secrets({"token": True, "password": None}) == {"token": True, "password": None}


def test_redaction_of_text() -> None:
    assert redact("api_key=abc, dtype=x") == "api_key=***, dtype=x"
    assert redact({"a": [{"token": "abc"}], "b": 1}) == {"a": [{"token": "***"}], "b": 1}


@pytest.mark.parametrize(
    "text",
    [
        "headers={'Authorization': 'Bearer planted-4711'}",
        "<CIMultiDictProxy('Host': 'h', 'Authorization': 'Bearer planted-4711')>",
        "Authorization: Bearer planted-4711",
        "authorization: Basic planted-4711==",
        '{"error": {"api_key": "planted-4711"}}',
        '{"password": "two words, planted-4711"}',
        "[(b'authorization', b'Bearer planted-4711')]",
        "cannot connect to http://me:planted-4711@host/v1 (refused)",
    ],
)
def test_a_secret_in_a_library_s_words_is_redacted(text: str) -> None:
    assert PLANTED not in redact(text)
    assert redact(text).count("***") == 1
    assert PLANTED not in format_traceback(RuntimeError(text))


def test_a_key_of_the_environment_is_in_no_line_whoever_quotes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_API_KEY", PLANTED)
    monkeypatch.setenv("HF_TOKEN", "EMPTY")
    monkeypatch.setenv("NO_SECRET_AT_ALL", "a plain value")
    for error in (RuntimeError(f"no such key: {PLANTED}"), ConfigurationError(f"their package says {PLANTED}")):
        assert PLANTED not in describe_failure(error)[0]
        assert PLANTED not in format_traceback(error)
    said = describe_failure(ConfigurationError("EMPTY is a plain value"))[0]
    assert said == "EMPTY is a plain value"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model_args", "pretrained=x,token=planted-4711"),
        ("--model_args=pretrained=x,auth_token=planted-4711",),
        ("--model_args", "pretrained=x", "api_key=planted-4711"),
        ("--model_args", '{"pretrained": "x", "header": {"Authorization": "Bearer planted-4711"}}'),
        ("--model_args", "pretrained=x,model_kwargs={'hf_token': 'planted-4711'}"),
        ("--model_args", "base_url=http://me:planted-4711@host/v1"),
        ("--model_args", "base_url=http://host/v1?api_key=planted-4711"),
        ("--model_args", '{"token": "planted-4711"'),
        ("--model_a", "pretrained=x,token=planted-4711"),
        ("-a", "pretrained=x,token=planted-4711"),
        ("-apretrained=x,token=planted-4711",),
        ("--metadata", '{"method": "simple", "token": "planted-4711"}'),
    ],
)
def test_a_secret_among_lm_evals_arguments_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="environment variable") as refused:
        run_lm_eval(["--model", "hf", *arguments, "--tasks", "personalitybench"])
    assert PLANTED not in str(refused.value)


def test_a_secret_on_lm_evals_command_line_is_one_line(tmp_path: Path) -> None:
    given = ("--model", "hf", "--model_args", f"pretrained=x,token={PLANTED}", "--tasks", "personalitybench")
    done = run_command("lm-eval", *given, cwd=tmp_path)
    assert "'token' is a secret" in one_line(done)
    assert PLANTED not in done.stderr + done.stdout


@pytest.mark.parametrize("arguments", [("--use_cache", "db"), ("--use_cache=db",), ("--use_c", "db"), ("-c", "db")])
def test_the_cache_of_answers_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="remove --use_cache"):
        run_lm_eval(["--model", "hf", *arguments, "--tasks", "personalitybench"])


@pytest.mark.parametrize(
    "text",
    ["token=True,dtype=float32", "think_end_token=</think>", '{"eos_token": "x", "token": null}', "a=http://h:1/v"],
)
def test_arguments_as_text_without_secrets_are_taken(text: str) -> None:
    refuse_secrets_in_text(text, "--model_args")
