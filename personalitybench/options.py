"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from personalitybench.hosts import HOST_OPTION, HOST_VARIABLE, allow_hosts
from personalitybench.remote_code import TRUST_OPTION, TRUST_VARIABLE, allow_remote_code

Budget = Annotated[float | None, typer.Option(min=0, help="US dollars that each judge may cost in this call.")]
DryRun = Annotated[bool, typer.Option(help="Only print calls, tokens and cost; nothing is sent.")]
Calibrations = Annotated[
    list[Path] | None,
    typer.Option(help="File of `judges calibrate` (repeatable): its judge's board shows mapped figures, too."),
]


def _trust(given: bool) -> bool:
    if given:
        allow_remote_code()
    return given


TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        TRUST_OPTION,
        callback=_trust,
        help=f"Let models run code of their folders ('trust_remote_code'); {TRUST_VARIABLE}=1 does the same.",
    ),
]


def _allow(given: list[str] | None) -> list[str] | None:
    allow_hosts(*(given or []))
    return given


AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        HOST_OPTION,
        metavar="HOST",
        callback=_allow,
        help=f"Let suites and judge profiles send text and keys to this host (repeatable); {HOST_VARIABLE} does the "
        "same.",
    ),
]
Sample = Annotated[int | None, typer.Option(min=1, help="So many answers of each method and target, by a fixed rule.")]
Answers = Annotated[
    str,
    typer.Option(
        help="Folder of a run, folder that lm_eval was given as --output_path, ratings.jsonl of an earlier "
        "comparison, or 'gold': the hand-written texts."
    ),
]
People = Annotated[
    list[Path] | None,
    typer.Option(help="A table from `judges compare --export` that people filled in (repeatable)."),
]
