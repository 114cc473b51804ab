"""A process that stores responses until it is killed, and says after each that it is stored."""

from __future__ import annotations

import sys
from pathlib import Path

from personalitybench.judging.responses import ResponseStore, StoredResponse, request_key


def stored_response(number: int) -> tuple[str, StoredResponse]:
    """The key and the reply of a made-up request, always the same for the same number."""
    key = request_key("judge", "http://127.0.0.1/v1", [{"role": "user", "content": f"answer {number}"}], {"seed": 0})
    explanation = " ".join(f"{word}{number}" for word in ("The", "answer", "looks", "for", "company", "and", "talks"))
    text = f"{explanation} {'gladly ' * (number % 40)}\n[[{1 + number % 5}]]"
    return key, StoredResponse(text, "judge-2026", "stop", 700 + number % 90, 40 + number % 40, "2026-11-22T12:00:00Z")


if __name__ == "__main__":
    with ResponseStore(Path(sys.argv[1])) as store:
        for number in range(int(sys.argv[2]), int(sys.argv[3])):
            key, response = stored_response(number)
            store.put(key, response)
            print(number, flush=True)  # noqa: T201 (read by the test)
