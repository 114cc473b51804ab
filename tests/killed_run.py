"""A run in a process of its own that says when it begins to write, so that a test can kill it after that."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from personalitybench.runs import stages
from personalitybench.runs.command import run_suite
from tests import plugins

__all__ = ["plugins"]  # imported for what it registers

_said = False


def _announcing(step: Callable[..., Any]) -> Callable[..., Any]:
    def announced(*arguments: Any) -> Any:
        global _said  # noqa: PLW0603 (one flag for one process)
        if not _said:
            print("writing", flush=True)  # noqa: T201
            _said = True
        return step(*arguments)

    return announced


if __name__ == "__main__":
    for place, name in ((stages.Run, "_answer"), (stages, "rate_missing")):
        setattr(place, name, _announcing(getattr(place, name)))
    run_suite(sys.argv[1], Path(sys.argv[2]), [], Console(file=sys.stderr))
