"""Hosts that text and keys are sent to: this machine, the service of a key, and hosts that the user names.

Suites, judge profiles and folders may come from somebody else, so an address in one is no permission. The user gives it
(:mod:`personalitybench.hosts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from personalitybench.argument_policy import leaves
from personalitybench.errors import ConfigurationError
from personalitybench.hosts import HOST_OPTION, HOST_VARIABLE, allow_hosts, allowed_hosts, host_of, is_this_machine

OPENAI_KEY = "OPENAI_API_KEY"
_SERVICES = {("https", "api.openai.com"): OPENAI_KEY}
"""The only key that each service of a bundled profile gets unasked."""

_DEFAULT_HOSTS = {  # of classes that need no address; litellm and watsonx take theirs from the model or environment
    "chat": "api.openai.com",
    "openai-completions": "api.openai.com",
    "openai-chat-completions": "api.openai.com",
    "anthropic-completions": "api.anthropic.com",
    "anthropic-chat": "api.anthropic.com",
    "anthropic-chat-completions": "api.anthropic.com",
    "textsynth": "api.textsynth.com",
    "watsonx_llm": "watsonx",
    "litellm": "litellm",
    "litellm-chat": "litellm",
    "litellm-chat-completions": "litellm",
}
_BASE = re.compile(r"(?:api_)?base(?:_url)?")
_ADDRESS_NAMES = re.compile(
    r"(?:.*_)?(?:url|uri|endpoint|host|hostname|ip|addr|address|server|servers|proxy|proxies|api_base)"
)
_URL = re.compile(r"([A-Za-z0-9+.-]{1,30})://([^/?#]*)")  # bounded, so that long words take no quadratic time


@dataclass(frozen=True)
class Destination:
    """An address among arguments: the name of the argument, the scheme, and the host (empty: not readable)."""

    argument: str
    scheme: str
    host: str


def allow_hosts_of(arguments: Mapping[str, Any]) -> None:
    """Record the hosts of arguments that the user wrote on the command line."""
    allow_hosts(*(each.host for each in destinations(arguments) if each.host))


def destinations(arguments: Mapping[str, Any], provider: str = "") -> list[Destination]:
    """Return the addresses among arguments of a model or settings of a judge, at any depth.

    Args:
        arguments: The arguments.
        provider: lm-eval model type or provider of a judge; its usual host counts where no address replaces it.
    """
    found = [each for path, value in leaves(arguments) for each in _addresses(path, value)]
    replaced = any(value and _BASE.fullmatch(path[-1]) for path, value in leaves(arguments))
    if provider in _DEFAULT_HOSTS and not replaced:
        found.insert(0, Destination(provider, "https", _DEFAULT_HOSTS[provider]))
    return found


def refuse_unnamed_hosts(
    arguments: Mapping[str, Any], where: str, text: str, *, provider: str = "", key: str = OPENAI_KEY
) -> None:
    """Refuse addresses that are neither this machine nor the service of the key, unless the user named their hosts.

    Args:
        arguments: Of a model, or settings of a judge.
        where: Suite or profile, for the error.
        text: The text that is sent.
        provider: As for :func:`destinations`.
        key: Environment variable of the key that goes along.

    Raises:
        ConfigurationError: One is another host.
    """
    for each in destinations(arguments, provider):
        if is_this_machine(each.host) or each.host in allowed_hosts():
            continue
        if _SERVICES.get((each.scheme, each.host)) == key and arguments.get("verify_certificate", True):
            continue
        sends = f"{where}: {each.argument!r} would send {text} and the key in {key} to "
        if not each.host:
            raise ConfigurationError(f"{sends}an address of no readable host: write it like http://localhost:8000/v1")
        raise ConfigurationError(
            f"{sends}{each.host}, which you did not name: if you trust it, add {HOST_OPTION} {each.host} or set "
            f"{HOST_VARIABLE}={each.host}"
        )


def _addresses(path: tuple[str, ...], value: Any) -> Iterator[Destination]:
    if not isinstance(value, str) or not value.strip():
        return
    argument = ".".join(path)
    found = _URL.findall(value)
    for scheme, authority in found:
        if authority or scheme.lower() != "file":
            yield Destination(argument, scheme.lower(), host_of(authority))
    if not found and any(_ADDRESS_NAMES.fullmatch(name.lower().replace("-", "_")) for name in path):
        yield Destination(argument, "", host_of(re.split(r"[/?#]", value.strip(), maxsplit=1)[0]))
