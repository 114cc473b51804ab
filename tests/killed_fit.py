"""A fit of `lora` in a process of its own that says when a checkpoint was written, so that a test can kill it then."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from personalitybench.methods import Artifact, FitContext, MethodContext, create_method
from personalitybench.prompts import load_wording
from personalitybench.questions import open_source
from personalitybench.training import adapters
from personalitybench.training.checkpoints import Checkpoints


def fit(model: Path, folder: Path, settings: dict[str, Any], **changes: Any) -> Artifact:
    """Fit into a folder."""
    source, wording = open_source("sample"), load_wording("project")
    context = FitContext(
        **{
            "model": str(model),
            "model_name": "tiny",
            "model_revision": "1",
            "source": source,
            "wording": wording,
            "folder": folder / "artifact",
            "model_args": {"dtype": "float32"},
            "device": "cpu",
            **changes,
        }
    )
    made = create_method("lora", settings, MethodContext(wording, source, context.seed)).fit(context)
    if made is None:
        raise TypeError("lora fits something")
    return made


if __name__ == "__main__":
    keep = Checkpoints.keep

    def announced(self: Checkpoints, *arguments: Any) -> None:
        keep(self, *arguments)
        print("kept", flush=True)  # noqa: T201

    Checkpoints.keep = announced  # type: ignore[method-assign]
    adapters.CHECKPOINT_SECONDS = 0.0
    fit(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
