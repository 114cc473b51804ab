"""Commits of repositories on the model hub, or of their snapshots on this machine; limits of downloads from it."""

from __future__ import annotations

import importlib
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from personalitybench.dry import is_dry
from personalitybench.network import check_address, check_network
from personalitybench.transfers import Limits, RateMonitor, SlowTransferError, Transfer

logger = logging.getLogger(__name__)

COMMIT_LIMITS = Limits(total=60.0, rate=None)
"""Limits of the question for a commit, with all tries of the hub's client."""

FILE_LIMITS = Limits(total=24 * 3600.0, rate=1000.0, window=60.0)
"""Limits of one file of a model."""

_ADVICE = "check the network and HF_ENDPOINT, or name a local folder"


def hub_commit(name: str, revision: str | None, file: str = "config.json") -> str | None:
    """Commit of a repository on the hub, or of the cached snapshot when the hub cannot be reached; None if neither.

    Args:
        name: ``organisation/repository``.
        revision: Branch, tag or commit; the default branch if None.
        file: A file that the repository has.

    Raises:
        ConfigurationError: A proxy, certificate or address of the hub in the environment cannot be used.
        SlowTransferError: The hub takes longer than :data:`COMMIT_LIMITS`, and no snapshot is on this machine.
    """
    from huggingface_hub import constants, hf_hub_download  # noqa: PLC0415 (slow import)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    def find(*, local: bool) -> str:
        path = hf_hub_download(name, file, revision=revision, etag_timeout=10, local_files_only=local)
        return Path(path).parent.name

    check_address("HF_ENDPOINT", constants.ENDPOINT)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what failed is said once, in our own words
    if not is_dry() and not constants.is_offline_mode():
        check_network("httpx", constants.ENDPOINT)
    try:
        if is_dry() or _cannot_be_reached(constants.ENDPOINT):
            return find(local=True)
        limit_downloads()
        try:
            return Transfer[str](lambda _: find(local=False)).run(
                f"the hub's answer for {name!r}", COMMIT_LIMITS, _ADVICE
            )
        except SlowTransferError as error:
            try:
                return find(local=True)
            except LocalEntryNotFoundError:
                raise error from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        logger.debug("hub: %s", error)
        return None


def limit_downloads() -> None:
    """Have the hub's client end downloads that exceed :data:`FILE_LIMITS`.

    Downloads of transformers, lm-eval and datasets go through this client; those of hf_xet have limits of their own.
    """
    import huggingface_hub  # noqa: PLC0415 (slow import)
    from huggingface_hub.utils import _http  # noqa: PLC0415

    make_client: Callable[[], Any] = getattr(_http, "default_client_factory", dict)
    if make_client is dict or getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is not make_client:
        return  # limited already, or a factory of the user's

    def limited() -> Any:
        client = make_client()
        http = importlib.import_module(type(client).__module__.partition(".")[0])

        class WatchedStream(http.SyncByteStream):  # type: ignore[misc, name-defined]
            def __init__(self, response: Any) -> None:
                self._stream = response.stream
                self._monitor = RateMonitor(str(response.url.copy_with(query=None)), FILE_LIMITS, _ADVICE)

            def __iter__(self) -> Iterator[bytes]:
                received = 0
                for block in self._stream:
                    received += len(block)
                    self._monitor.check(received)
                    yield block

            def close(self) -> None:
                self._stream.close()

        def watch_stream(response: Any) -> None:
            response.stream = WatchedStream(response)

        client.event_hooks["response"] = [*client.event_hooks.get("response", []), watch_stream]
        return client

    huggingface_hub.set_client_factory(limited)


def _cannot_be_reached(url: str) -> bool:
    """Return True if a host has no address here: then the hub's client would only wait through its retries."""
    if getproxies():  # a proxy resolves names for us
        return False
    try:
        socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return True
    return False
