"""Text and keys go only to this machine, to the service of the key, and to hosts that the user named."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from personalitybench.backends.loading import load_model
from personalitybench.errors import ConfigurationError
from personalitybench.host_policy import destinations, refuse_unnamed_hosts
from personalitybench.hosts import HOST_VARIABLE, allow_hosts
from personalitybench.judging.base import create_judge
from personalitybench.redaction import redact
from personalitybench.validation import parse_model_arguments
from tests.security.terminal import one_line, run_command, write_judge

SUITE = """
name: theirs
models: [%s]
methods: [none]
targets: ['openness:high']
judges: [%s]
questions: {limit: 1}
floors: false
"""
PLAIN_MODEL = "{name: nothing, backend: dummy}"
EVIL = "evil.example"
CHAT = "id: j\nprovider: chat\nsummary: s\nsettings: {model: m, %s}\n"


@pytest.fixture(autouse=True)
def nothing_is_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No host is named but by the test, and none afterwards."""
    monkeypatch.setenv(HOST_VARIABLE, "")
    yield


def refused(arguments: dict[str, Any], **more: str) -> str:
    with pytest.raises(ConfigurationError) as found:
        refuse_unnamed_hosts(arguments, "suite s", "prompts", **more)
    return str(found.value)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_server_that_only_the_suite_names_is_refused(dry: list[str], tmp_path: Path) -> None:
    model = f"{{name: m, backend: local-chat-completions, args: {{base_url: 'https://{EVIL}/v1/chat/completions'}}}}"
    (tmp_path / "s.yaml").write_text(SUITE % (model, "offline"))
    line = one_line(run_command("run", "s.yaml", *dry, cwd=tmp_path, OPENAI_API_KEY="planted", **{HOST_VARIABLE: ""}))
    assert f"suite s.yaml, model m: 'base_url' would send prompts and the key in OPENAI_API_KEY to {EVIL}" in line
    assert f"--allow-host {EVIL}" in line
    assert not (tmp_path / "runs").exists()


def test_a_host_that_the_user_names_is_told_by_the_dry_run(tmp_path: Path) -> None:
    model = f"{{name: m, backend: local-chat-completions, args: {{base_url: 'https://{EVIL}/v1/chat/completions'}}}}"
    (tmp_path / "s.yaml").write_text(SUITE % (model, "j.yaml"))
    (tmp_path / "j.yaml").write_text(CHAT % f"base_url: 'https://{EVIL}/v1'")
    done = run_command("run", "s.yaml", "--dry-run", "--json", "--allow-host", EVIL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"prompts of m go to {EVIL}" in done.stdout
    assert f"answers go to {EVIL} (judge j)" in done.stdout


@pytest.mark.parametrize("dry", [[], ["--dry-run"], ["--dry-run", "--stage", "generate"]])
def test_a_judge_of_a_suite_is_refused_by_its_host(dry: list[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE % (PLAIN_MODEL, "j.yaml"))
    (tmp_path / "j.yaml").write_text(CHAT % f"base_url: 'https://{EVIL}/v1', api_key_env: HOME_SECRET")
    variables = {"HOME_SECRET": "planted", HOST_VARIABLE: ""}
    line = one_line(run_command("run", "s.yaml", *dry, cwd=tmp_path, **variables))
    assert "judge profile j.yaml: 'base_url' would send questions, answers and the key in HOME_SECRET" in line
    assert f"to {EVIL}" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("judge", "run", "--judge", "j.yaml"),
        ("judges", "attack", "j.yaml"),
        ("judges", "compare", "j.yaml", "--answers", "gold"),
        ("judges", "calibrate", "offline", "j.yaml", "--answers", "gold"),
    ],
)
def test_a_profile_of_the_command_line_is_no_word_for_its_host(command: tuple[str, ...], tmp_path: Path) -> None:
    found = write_judge(tmp_path, tmp_path / "packages")
    (tmp_path / "j.yaml").write_text(CHAT % f"base_url: 'https://{EVIL}/v1'")
    if command[0] == "judge":
        (tmp_path / "s.yaml").write_text(SUITE % (PLAIN_MODEL, "constant.yaml"))
        done = run_command("run", "s.yaml", "--output", "run", cwd=tmp_path, **found)
        assert done.returncode == 0, done.stderr
    line = one_line(run_command(*command, "--dry-run", cwd=tmp_path, **found, **{HOST_VARIABLE: ""}))
    assert f"--allow-host {EVIL}" in line


def test_members_of_a_panel_need_the_users_word(tmp_path: Path) -> None:
    (tmp_path / "j.yaml").write_text(CHAT % f"base_url: 'https://{EVIL}/v1'")
    settings = f"{{judges: [offline, '{tmp_path / 'j.yaml'}']}}"
    (tmp_path / "p.yaml").write_text(f"id: p\nprovider: panel\nsummary: s\nsettings: {settings}\n")
    with pytest.raises(ConfigurationError, match=f"--allow-host {EVIL}"):
        create_judge(str(tmp_path / "p.yaml"))


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ("api_key_env: HOME_SECRET", "api.openai.com"),
        ("base_url: 'https://api.openai.com/v1', api_key_env: AWS_SECRET_ACCESS_KEY", "api.openai.com"),
        ("base_url: 'http://api.openai.com/v1'", "api.openai.com"),
        (f"sampling: {{tools: [{{type: mcp, server_url: 'https://{EVIL}/mcp'}}]}}", EVIL),
    ],
)
def test_a_key_goes_to_its_service_alone(settings: str, host: str, tmp_path: Path) -> None:
    (tmp_path / "j.yaml").write_text(CHAT % settings)
    with pytest.raises(ConfigurationError, match=f"--allow-host {host}"):
        create_judge(str(tmp_path / "j.yaml"))


def test_a_judge_of_logits_is_refused_by_its_host(tmp_path: Path) -> None:
    settings = f"{{model: m, backend: local-completions, args: {{base_url: 'https://{EVIL}/v1/completions'}}}}"
    (tmp_path / "j.yaml").write_text(f"id: j\nprovider: local-logits\nsummary: s\nsettings: {settings}\n")
    with pytest.raises(ConfigurationError, match=f"'args.base_url' .* to {EVIL}"):
        create_judge(str(tmp_path / "j.yaml"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "https://evil.example/v1"},
        {"base_url": "HTTPS://EVIL.example/v1"},
        {"base_url": " https://evil.example"},
        {"base_url": "evil.example/v1"},
        {"api_base": "evil.example:443"},
        {"proxies": {"https": "evil.example:8080"}},
        {"model_kwargs": [{"proxies": {"https": "socks5h://evil.example"}}]},
        {"tokenizer": "s3://evil.example/tokenizer"},
        {"kv_transfer_config": {"kv_ip": "evil.example"}},
        {"base_url": "http://127.0.0.1.evil.example"},
        {"base_url": "http://localhost.evil.example"},
    ],
    ids=str,
)
def test_other_ways_to_name_a_host_are_found(arguments: dict[str, Any]) -> None:
    assert "evil.example" in refused(arguments)
    allow_hosts(*(each.host for each in destinations(arguments)))
    refuse_unnamed_hosts(arguments, "suite s", "prompts")


@pytest.mark.parametrize(
    "url",
    ["http://evil.example\\@127.0.0.1/v1", "http://127.0.0.1\\@evil.example", "http://me@127.0.0.1",
     "http://127.0.0.1\t.evil.example", "http://evil。example", "http:///v1", "http://[::1", "http://⑫7.0.0.1"],
)  # fmt: skip
def test_an_address_that_libraries_may_read_otherwise_is_refused(url: str) -> None:
    allow_hosts(EVIL)
    assert "an address of no readable host" in refused({"base_url": url})


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "http://localhost:8000/v1"},
        {"base_url": "http://127.0.0.1:8000/v1"},
        {"base_url": "http://[::1]:8000/v1"},
        {"base_url": "http://127.7.7.7"},
        {"base_url": "https://api.openai.com/v1/chat/completions"},
        {"base_url": None, "dtype": "float32", "pretrained": "org/model", "device_map": "auto", "data": "file:///d"},
    ],
    ids=str,
)
def test_this_machine_and_the_service_of_the_key_need_no_word(arguments: dict[str, Any]) -> None:
    refuse_unnamed_hosts(arguments, "suite s", "prompts", provider="local-chat-completions")


def test_a_key_goes_to_its_service_over_a_verified_connection_alone() -> None:
    arguments = {"base_url": "https://api.openai.com/v1", "verify_certificate": False}
    with pytest.raises(ConfigurationError, match=r"--allow-host api\.openai\.com"):
        refuse_unnamed_hosts(arguments, "suite s", "prompts", provider="local-chat-completions")


@pytest.mark.parametrize(
    ("backend", "host"), [("anthropic-chat", "api.anthropic.com"), ("litellm", "litellm"), ("textsynth", "textsynth")]
)
def test_services_without_an_address_count(backend: str, host: str) -> None:
    assert host in refused({}, provider=backend)
    refuse_unnamed_hosts({}, "suite s", "prompts", provider="openai-chat-completions")


def test_a_model_is_not_loaded_from_an_unnamed_host() -> None:
    with pytest.raises(ConfigurationError, match=f"--allow-host {EVIL}"):
        load_model("local-completions", {"model": "m", "base_url": f"https://{EVIL}/v1"}, 1, None)


def test_model_arguments_of_the_command_line_are_the_users_word() -> None:
    found = parse_model_arguments(f"base_url=https://{EVIL}/v1")
    assert os.environ[HOST_VARIABLE] == EVIL
    refuse_unnamed_hosts(found, "model m", "prompts")


@pytest.mark.parametrize(
    ("given", "host"), [("Judge.Example:8000", "judge.example"), ("https://a.b/v1", "a.b"), ("fd00::1", "fd00::1")]
)
def test_the_option_takes_hosts_and_addresses(given: str, host: str) -> None:
    allow_hosts(given)
    assert os.environ[HOST_VARIABLE] == host
    url = f"http://[{host}]/v1" if ":" in host else f"http://{host}/v1"
    refuse_unnamed_hosts({"base_url": url}, "suite s", "prompts")


@pytest.mark.parametrize("given", ["", "a b", "a/b", "http://"])
def test_the_option_refuses_what_is_no_host(given: str) -> None:
    with pytest.raises(ConfigurationError, match="is no host"):
        allow_hosts(given)


@pytest.mark.parametrize("text", ["x" * 200_000, "x-" * 100_000, "a://" * 50_000, ":" * 200_000])
def test_long_values_take_little_time(text: str) -> None:
    before = time.process_time()
    destinations({"x": text, "base_url": text})
    redact(text)
    assert time.process_time() - before < 2
