"""Bounded reading of HTTP bodies: a limit on decoded bytes, also for compressed bodies."""

from __future__ import annotations

import zlib

LIMIT = 4 * 1024 * 1024
"""Decoded bytes of a reply at most; a reply of 4,096 tokens takes about 20 kB."""

ENCODINGS = "gzip, deflate"
"""``Accept-Encoding`` of requests whose bodies :class:`BoundedBody` decodes."""

_ZLIB_OR_GZIP = 47  # zlib's wbits: detect the header


class UnreadableBodyError(Exception):
    """A body is larger than the limit, or in an encoding that was not asked for."""


class BoundedBody:
    """Decodes the blocks of one body; never holds more than the limit.

    Args:
        encoding: ``Content-Encoding`` of the response.
        limit: Decoded bytes at most.
    """

    def __init__(self, encoding: str, limit: int = LIMIT) -> None:
        named, encoding = encoding, encoding.strip().lower()
        if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise UnreadableBodyError(f"the body is encoded as {named[:40]!r}, which was not asked for")
        self._decoder = None if encoding in {"", "identity"} else zlib.decompressobj(_ZLIB_OR_GZIP)
        self._limit = self._left = limit

    def decode(self, block: bytes) -> bytes:
        """Return the decoded content of the next block.

        Raises:
            UnreadableBodyError: The body exceeds the limit, or is damaged.
        """
        if self._decoder is not None:
            try:
                block = self._decoder.decompress(block, self._left + 1)
            except zlib.error as error:
                raise UnreadableBodyError(f"the compressed body is damaged ({error})") from error
        if len(block) > self._left:
            raise UnreadableBodyError(f"the body is larger than {self._limit // 1024**2} MiB")
        self._left -= len(block)
        return block
