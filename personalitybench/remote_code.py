"""The user's permission to run code of model folders: an option of commands and an environment variable."""

from __future__ import annotations

import os

TRUST_VARIABLE = "PERSONALITYBENCH_TRUST_REMOTE_CODE"
TRUST_OPTION = "--trust-remote-code"
OFF = {"", "0", "false", "no", "none", "off"}
"""Values of a variable or argument that allow nothing."""


def allow_remote_code() -> None:
    """Record the permission for this process and its children."""
    os.environ[TRUST_VARIABLE] = "1"


def is_remote_code_allowed() -> bool:
    """Whether the user gave the permission."""
    return os.environ.get(TRUST_VARIABLE, "").strip().lower() not in OFF
