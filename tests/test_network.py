"""Proxies and certificates of the environment: a value that cannot be used is one line that names the variable."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from personalitybench import downloads, network
from personalitybench.backends.served import use_whole_replies
from personalitybench.doctor import examine
from personalitybench.errors import ConfigurationError
from personalitybench.hub import hub_commit
from personalitybench.judging.http_client import async_client, client
from personalitybench.network import check_address, check_network
from personalitybench.packages import download_package

VARIABLES = [
    *(name for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (each, each.lower())),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def openai() -> ModuleType:
    return pytest.importorskip("openai")


def served_model() -> None:
    from lm_eval.models.openai_completions import LocalChatCompletion

    model = LocalChatCompletion(base_url="https://models.example/v1/chat/completions", model="x")
    use_whole_replies(model)


def fetch_file() -> None:
    downloads.fetch_pinned("NPTI/dataset/test/Example.json", "0" * 40)


BAD_PROXIES = [
    ("ALL_PROXY", "socks://127.0.0.1:7890", "type socks:// cannot be used here"),
    ("all_proxy", "ftp://127.0.0.1:7890", "type ftp:// cannot be used here"),
    ("HTTPS_PROXY", "http://", "it names no host"),
    ("https_proxy", "http://proxy:port", "write http://HOST:PORT"),
    ("HTTPS_PROXY", "http://proxy:99999", "out of range"),
    ("HTTPS_PROXY", "http://[::1", "write http://HOST:PORT"),
    ("HTTPS_PROXY", "nonsense", "host 'nonsense' is not known"),
    ("ALL_PROXY", "http://user:hunter2@nowhere.invalid:3128", "host 'nowhere.invalid' is not known"),
]


@pytest.mark.parametrize(("variable", "value", "says"), BAD_PROXIES)
@pytest.mark.parametrize("client", ["httpx", "requests", "aiohttp"])
def test_a_proxy_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, client: network.Client, variable: str, value: str, says: str
) -> None:
    monkeypatch.setattr(network.socket, "getaddrinfo", refuse)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=rf"^{variable}=.*{re.escape(says)}") as caught:
        check_network(client, "https://judge.example/v1")
    assert "hunter2" not in str(caught.value)


def refuse(*_: object) -> None:
    raise OSError(-2, "Name or service not known")


def test_a_proxy_of_another_address_does_not_matter_where_the_client_does_not_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks://x")
    check_network("requests", "http://127.0.0.1:1/")
    monkeypatch.setenv("HTTP_PROXY", "socks://x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    check_network("aiohttp", "http://127.0.0.1:1/")
    monkeypatch.setenv("NO_PROXY", "*")
    check_network("httpx", "https://judge.example/v1")


def test_socks_proxies_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setattr(network, "find_spec", lambda _: None)
    for name, package in (("httpx", "socksio"), ("requests", "PySocks")):
        with pytest.raises(ConfigurationError, match=rf"ALL_PROXY=.*: this proxy needs the package {package}: pip"):
            check_network(name, "https://x/")  # type: ignore[arg-type]
    monkeypatch.setattr(network, "find_spec", lambda _: object())
    check_network("httpx", "https://x/")
    with pytest.raises(ConfigurationError, match="type socks5:// cannot be used here"):
        check_network("aiohttp", "https://x/")


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("SSL_CERT_FILE", "httpx"),
        ("SSL_CERT_DIR", "httpx"),
        ("SSL_CERT_FILE", "aiohttp"),
        ("REQUESTS_CA_BUNDLE", "requests"),
        ("CURL_CA_BUNDLE", "requests"),
    ],
)
def test_certificates_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, name: network.Client
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    with pytest.raises(ConfigurationError, match=rf"^{variable}=.*there is no such file or folder"):
        check_network(name, "https://x/")
    (tmp_path / "garbage.pem").write_text("no certificate")
    monkeypatch.setenv(variable, str(tmp_path / "garbage.pem"))
    with pytest.raises(ConfigurationError, match=rf"^{variable}=.*it holds no certificates"):
        check_network(name, "https://x/")
    monkeypatch.setenv(variable, str(tmp_path))
    check_network(name, "https://x/")


@pytest.mark.parametrize("address", ["nonsense", "", "ftp://x", "http://", "https://x:port", "https://[::1"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^HF_ENDPOINT=.* is no address"):
        check_address("HF_ENDPOINT", address)


@pytest.mark.parametrize(
    "use",
    [
        lambda _: hub_commit("somebody/model", None),
        lambda _: fetch_file(),
        lambda _: served_model(),
        lambda folder: download_package("x==1.0", folder, "package x"),
    ],
    ids=["hub", "data", "served", "package"],
)
def test_every_client_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use: Callable[[Path], Any]
) -> None:
    monkeypatch.setattr(pytest.importorskip("huggingface_hub").constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7890")
    with pytest.raises(ConfigurationError, match=r"^ALL_PROXY=socks://127\.0\.0\.1:7890: a proxy of type"):
        use(tmp_path)


def test_judges_name_the_variable(monkeypatch: pytest.MonkeyPatch, openai: ModuleType) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7890")
    for make in (lambda: async_client(openai, 1.0), lambda: client(openai, 1.0, "/content")):
        with pytest.raises(ConfigurationError, match=r"^ALL_PROXY=socks://127\.0\.0\.1:7890: a proxy of type"):
            make()


@pytest.mark.parametrize("value", ["[::1]", "[::1", "::1", "a b", "http://", "[]", "]", ",,,", "*.x.org:80"])
def test_every_no_proxy_is_taken_or_named(monkeypatch: pytest.MonkeyPatch, openai: ModuleType, value: str) -> None:
    monkeypatch.setenv("NO_PROXY", value)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    try:
        async_client(openai, 1.0, "https://x/")
    except ConfigurationError as error:
        assert f"NO_PROXY={value}" in str(error)


def test_the_doctor_lists_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks://x")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    found = {finding.name: finding for finding in examine() if finding.area == "network"}
    assert {name: finding.ready for name, finding in found.items()} == {
        "HTTPS_PROXY": False,
        "SSL_CERT_FILE": False,
        "SSL_CERT_DIR": True,
    }
    assert "there is no such file" in found["SSL_CERT_FILE"].detail
    assert os.environ["SSL_CERT_DIR"]
