"""What a method is called in progress, folders and boards: by its name, a combination by its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMBINED = "combined"
"""Name of the method that combines others; its setting ``parts`` lists them."""


def method_title(name: str, settings: Mapping[str, Any], between: str = " + ") -> str:
    """Give a method its title.

    Args:
        name: Registered name.
        settings: As the user or a board's row has them; a part of a combination is a name, or has one.
        between: What stands between the parts.
    """
    parts = settings.get("parts") if name == COMBINED else None
    return between.join(part if isinstance(part, str) else str(part["name"]) for part in parts) if parts else name
