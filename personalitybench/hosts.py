"""Hosts, and the user's permission to send to one: an option of commands and an environment variable."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit

from personalitybench.errors import ConfigurationError

HOST_OPTION = "--allow-host"
HOST_VARIABLE = "PERSONALITYBENCH_ALLOW_HOSTS"

_AUTHORITY = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d*)?")


def allow_hosts(*names: str) -> None:
    """Record hosts that the user names, for this process and its children; an address stands for its host.

    Raises:
        ConfigurationError: One is no host.
    """
    hosts = set(allowed_hosts())
    for name in names:
        host = host_of(name.partition("://")[2].split("/")[0] if "://" in name else name)
        if not host:
            raise ConfigurationError(f"{HOST_OPTION} {name!r} is no host: write it like judge.example.org")
        hosts.add(host)
    os.environ[HOST_VARIABLE] = ",".join(sorted(hosts))


def allowed_hosts() -> set[str]:
    """Return the hosts that the user named."""
    return set(filter(None, (host_of(each) for each in re.split(r"[\s,]+", os.environ.get(HOST_VARIABLE, "")))))


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine's loopback interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(authority: str) -> str:
    """Return the host of an authority, in lower case; empty where libraries could read it in several ways."""
    try:
        return str(ipaddress.IPv6Address(authority))
    except ValueError:
        pass
    if _AUTHORITY.fullmatch(authority) is None:
        return ""
    try:
        return (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""
