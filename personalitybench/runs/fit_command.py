"""``personalitybench fit``: one method, one model, and at the end what was found, where it lies and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from personalitybench.artifacts.store import Fit
from personalitybench.artifacts.usage import fit_rows, fit_table, use_lines, use_metadata
from personalitybench.costs import describe_cost
from personalitybench.methods import Artifact, MethodContext, create_method
from personalitybench.model_identity import model_record
from personalitybench.prompts import load_wording
from personalitybench.questions import shared_source
from personalitybench.runs.model_arguments import fit_arguments, resolve_arguments
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.suite import ModelSpec
from personalitybench.validation import parse_model_arguments, parse_pairs, validate


@dataclass(frozen=True)
class FitOptions:
    """What the command was asked for.

    Attributes:
        method: Registered name of the method.
        model: Local folder, hub name, or ``demo``.
        backend: lm-eval model type.
        model_args: Its arguments as ``name=value,name=value``.
        revision: Hub revision.
        device: Torch device, or None for the default.
        settings: Settings of the method, each as ``name=value``; the value is YAML.
        source: ``sample`` or ``official`` questions.
        data_dir: Local copy of the official ones.
        prompts: ``project`` or ``official`` wording.
        seed: Seed of everything that is drawn.
    """

    method: str
    model: str
    backend: str = "hf"
    model_args: str = ""
    revision: str | None = None
    device: str | None = None
    settings: Sequence[str] = ()
    source: str = "sample"
    data_dir: Path | None = None
    prompts: str = "project"
    seed: int = 0


def fit_method(options: FitOptions, console: Console) -> Artifact | None:
    """Fit, or find that it was done.

    Args:
        options: What to fit.
        console: Where progress and the table go.

    Returns:
        The artifact; None if the method fits nothing.

    Raises:
        PersonalityBenchError: Something is wrong; what was done is kept.
    """
    source = shared_source(options.source, None if options.data_dir is None else str(options.data_dir))
    context = MethodContext(load_wording(options.prompts), source, options.seed)
    method = create_method(options.method, parse_pairs(options.settings, "--set"), context)
    given = {
        "name": options.model,
        "backend": options.backend,
        "args": parse_model_arguments(options.model_args),
        "revision": options.revision,
        "device": options.device,
    }
    spec = validate(ModelSpec, given, "fit: option of the model")
    arguments, commit = resolve_arguments(spec)
    record = model_record(spec.backend, arguments, commit)
    fit = Fit(options.method, method, record, spec.backend, fit_arguments(spec))
    artifact = fit.artifact()
    if artifact is None:
        location = str(arguments.get("pretrained", spec.name))
        with (
            RunProgress(console) as progress,
            progress.stage("fit", options.method, total=1, done=0, unit="steps") as stage,
        ):
            artifact = fit.make(location, device=spec.device, report=stage.show)
    if artifact is None:
        console.print(f"method {options.method!r} fits nothing: it can be used as it is")
        return None
    _show(fit, artifact, console)
    return artifact


def _show(fit: Fit, artifact: Artifact, console: Console) -> None:
    """The table by target, what it took, the folder, and the two ways to use it."""
    rows = fit_rows(fit.method, artifact)
    if rows:
        console.print(fit_table(rows))
    if artifact.cost is not None:
        console.print(f"took: {describe_cost(artifact.cost)}")
    settings = fit.method.settings
    later = settings.model_dump(mode="json", include=set(settings.used_after_fit) & settings.model_fields_set)
    metadata = use_metadata(fit.identity, str(artifact.folder), has_strength=fit.method.has_strength, settings=later)
    for line in use_lines(metadata):
        console.print(line, soft_wrap=True)
