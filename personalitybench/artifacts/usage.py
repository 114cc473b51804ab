"""What a method tells of its fit, and how the fit is used: the same words after a fit and whenever it is looked at."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from personalitybench.errors import ConfigurationError
from personalitybench.methods import Artifact, InductionMethod

_USUAL = {"source": "sample", "prompts": "project", "seed": 0}


def fit_rows(method: InductionMethod, artifact: Artifact) -> list[dict[str, str]]:
    """What the method tells of its fit: rows of a table, all with the same columns; none where it tells nothing.

    Raises:
        ConfigurationError: The method fails to tell.
    """
    describe = getattr(method, "describe_fit", None)  # optional: a fit may have nothing to tell
    try:
        rows = describe(artifact) if describe else []
        return [{str(name): str(value) for name, value in row.items()} for row in rows]
    except Exception as error:  # whatever a method of somebody else raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"the method cannot tell of its fit in {artifact.folder}: {reason}") from error


def fit_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """The same as a table, numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def use_metadata(
    identity: Mapping[str, Any], folder: str, *, has_strength: bool, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What ``lm_eval --metadata`` is told to use a fit.

    Args:
        identity: What the fit depends on.
        folder: Of the artifact.
        has_strength: Whether the method has one.
        settings: Those that act after the fit and so do not stand in its artifact.
    """
    metadata: dict[str, Any] = {"method": identity["method"]["name"], "artifact": folder}
    metadata |= {"settings": dict(settings)} if settings else {}
    metadata |= {"strength": 1.0} if has_strength else {}
    chosen = {
        "source": identity["data"]["source"],
        "prompts": identity["wording"]["name"],
        "seed": identity["seed"],
    }
    return metadata | {name: value for name, value in chosen.items() if value != _USUAL[name]}


def use_lines(metadata: Mapping[str, Any]) -> list[str]:
    """How a fit is used, in lines that are not to be wrapped."""
    return [
        f"artifact: {metadata['artifact']}",
        "in a suite: nothing to do; the same model, settings, questions and seed find it",
        f"in lm_eval: --metadata {shlex.quote(json.dumps(dict(metadata)))}",
    ]
