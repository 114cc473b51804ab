"""Proxies and certificates that the environment names: checked before use, so that an error names the variable."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from personalitybench.errors import ConfigurationError
from personalitybench.redaction import redact

Client = Literal["httpx", "requests", "aiohttp"]

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_CERTIFICATES: dict[Client, tuple[str, ...]] = {
    "httpx": ("SSL_CERT_FILE", "SSL_CERT_DIR"),
    "requests": ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    "aiohttp": ("SSL_CERT_FILE", "SSL_CERT_DIR"),
}
_SCHEMES: dict[Client, tuple[str, ...]] = {
    "httpx": ("http", "https", "socks5", "socks5h"),
    "requests": ("http", "https", "socks4", "socks4a", "socks5", "socks5h"),
    "aiohttp": ("http", "https"),
}
_SOCKS_PACKAGES = {"httpx": ("socksio", "socksio"), "requests": ("socks", "PySocks")}


def check_network(client: Client, url: str | None = None) -> None:
    """Refuse proxies and certificates of the environment that an HTTP client cannot use.

    Args:
        client: The client; httpx stands for its successor, too.
        url: Address that will be asked; None where it is not known, then proxies need not be reachable.

    Raises:
        ConfigurationError: One is unusable; the text names the variable.
    """
    for problem in find_problems(client, url):
        raise ConfigurationError(problem)


def check_address(variable: str, address: str) -> None:
    """Refuse an address of the environment that is none.

    Raises:
        ConfigurationError: It is not ``http://host`` or ``https://host``.
    """
    try:
        parts = urlsplit(address)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"{_show(variable, address)} is no address: write https://HOST, or unset it")


@contextmanager
def reporting_setup() -> Iterator[None]:
    """Turn errors of a client's setup, which reads the environment, into one line.

    Raises:
        ConfigurationError: The text names all variables that may be the cause.
    """
    try:
        yield
    except (ImportError, ValueError, OSError) as error:
        no_proxy = [found for found in [_first("no_proxy")] if found[1]]
        settings = [_show(*found) for found in proxy_variables()] + [f"{name}={value}" for name, value in no_proxy]
        settings += [f"{name}={os.environ[name]}" for name in certificate_variables()]
        text = ", ".join(settings) or "no variable for proxies or certificates is set"
        raise ConfigurationError(f"no HTTP client can be set up ({error}): correct or unset {text}") from error


def find_problems(client: Client, url: str | None = None) -> Iterator[str]:
    """Yield a line for each variable that a client cannot use; arguments as for :func:`check_network`."""
    parts = urlsplit(url or "")
    for variable, value in proxy_variables():
        # httpx builds connections for all proxies, the others for the one that an address goes through.
        applies = variable.lower() in {f"{parts.scheme}_proxy", "all_proxy"} and not proxy_bypass(parts.hostname or "")
        if client != "httpx" and url is not None and not applies:
            continue
        problem = _proxy_problem(value, client)
        if problem is None and url is not None and applies:
            problem = _unreachable(value)
        if problem is not None:
            yield f"{_show(variable, value)}: {problem}"
    if client != "httpx" and parts.scheme == "http":
        return
    for variable in _CERTIFICATES[client]:
        path = os.environ.get(variable)
        if path and (problem := _certificate_problem(path)) is not None:
            yield f"{variable}={path}: {problem}"


def proxy_variables() -> list[tuple[str, str]]:
    """Variables that name proxies, with their values; the name in small letters wins, as it does for all clients."""
    if "*" in (part.strip() for part in _first("no_proxy")[1].split(",")):
        return []
    return [found for found in map(_first, _PROXIES) if found[1]]


def certificate_variables() -> list[str]:
    """Variables that are set and name certificates."""
    names = dict.fromkeys(name for names in _CERTIFICATES.values() for name in names)
    return [name for name in names if os.environ.get(name)]


def _first(name: str) -> tuple[str, str]:
    for variable in (name, name.upper()):
        if value := os.environ.get(variable, "").strip():
            return variable, value
    return name, ""


def _proxy_problem(value: str, client: Client) -> str | None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"{error}: write http://HOST:PORT, or unset it"
    if not host:
        return "it names no host: write http://HOST:PORT, or unset it"
    if parts.scheme not in _SCHEMES[client]:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES[client])
        return f"a proxy of type {parts.scheme}:// cannot be used here: write one of {known}, or unset it"
    if parts.scheme.startswith("socks"):
        module, package = _SOCKS_PACKAGES[client]
        if find_spec(module) is None:
            return f"this proxy needs the package {package}: pip install {package}, name an http:// proxy, or unset it"
    return None


def _unreachable(value: str) -> str | None:
    host = urlsplit(value if "://" in value else f"http://{value}").hostname
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return f"the proxy's host {host!r} is not known: correct it, or unset it"
    return None


def _certificate_problem(path: str) -> str | None:
    try:
        if Path(path).is_dir():
            return None
        if not Path(path).is_file():
            return "there is no such file or folder: name one with certificates, or unset it"
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        return f"it holds no certificates ({error}): name another file, or unset it"
    return None


def _show(variable: str, value: str) -> str:
    shown = redact(value if "://" in value else f"http://{value}")
    return f"{variable}={value if '***' not in shown else shown}"
