"""Commits of repositories on the model hub, or of their snapshots on this machine."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from personalitybench.dry import is_dry

logger = logging.getLogger(__name__)


def hub_commit(name: str, revision: str | None, file: str = "config.json") -> str | None:
    """Commit of a repository on the hub, or of the cached snapshot when the hub cannot be reached; None if neither.

    Args:
        name: ``organisation/repository``.
        revision: Branch, tag or commit; the default branch if None.
        file: A file that the repository has.
    """
    from huggingface_hub import constants, hf_hub_download  # noqa: PLC0415 (slow import)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        path = hf_hub_download(
            name,
            file,
            revision=revision,
            etag_timeout=10,
            local_files_only=is_dry() or _cannot_be_reached(constants.ENDPOINT),
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        logger.debug("hub: %s", error)
        return None
    return Path(path).parent.name


def _cannot_be_reached(url: str) -> bool:
    """Return True if a host has no address here: then the hub's client would only wait through its retries."""
    if getproxies():  # a proxy resolves names for us
        return False
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return True
    return False
