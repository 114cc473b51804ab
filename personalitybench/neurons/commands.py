"""``personalitybench neurons``: look at what a fit found, and take the paper's neuron files in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personalitybench.errors import ConfigurationError
from personalitybench.outside_text import echo, echo_path

if TYPE_CHECKING:
    from personalitybench.model_identity import ModelIdentity

neurons_app = typer.Typer(
    no_args_is_help=True,
    help="Look at personality neurons; read and write the paper's neuron files.",
    rich_markup_mode="markdown",
)


@neurons_app.command("report", epilog="Example: `personalitybench neurons report FOLDER-OF-A-FIT --output report`")
def report(
    folder: Annotated[Path, typer.Argument(help="A fit, or imported neurons; sets are looked for beneath it.")],
    output: Annotated[
        Path | None, typer.Option(help="Write neurons.json, neurons.md and the page neurons.html here, too.")
    ] = None,
    strongest: Annotated[int, typer.Option(help="How many of each target's strongest neurons to list.")] = 5,
) -> None:
    """Show neurons by target and layer, what targets share, and the strongest neurons."""
    from personalitybench.console import PlainConsole  # noqa: PLC0415
    from personalitybench.neurons.collection import find_sets  # noqa: PLC0415
    from personalitybench.neurons.render import write_report  # noqa: PLC0415
    from personalitybench.neurons.report import make_report  # noqa: PLC0415
    from personalitybench.neurons.tables import report_tables  # noqa: PLC0415
    from personalitybench.pages import NO_PLOTS, can_plot  # noqa: PLC0415

    made = make_report(find_sets(folder), strongest)
    console = PlainConsole()
    console.print(report_tables(made))
    if output is None:
        return
    if not can_plot():
        typer.echo(f"personalitybench: {NO_PLOTS}", err=True)
    for path in write_report(made, output):
        console.print(str(path), soft_wrap=True)


@neurons_app.command("export", epilog="Example: `personalitybench neurons export FOLDER-OF-A-FIT --output files`")
def export_files(
    folder: Annotated[Path, typer.Argument(help="A fit, or imported neurons; sets are looked for beneath it.")],
    output: Annotated[Path, typer.Option(help="Folder for the files.")],
) -> None:
    """Write neurons as the paper's files (`Openness_dict.json`, `Openness_reversed_dict.json`, ...)."""
    from personalitybench.neurons.collection import find_sets  # noqa: PLC0415
    from personalitybench.neurons.exchange import export_official  # noqa: PLC0415

    for path in export_official(find_sets(folder), output):
        echo_path(path)


@neurons_app.command(
    "import",
    epilog="Example: `personalitybench neurons import Openness_dict.json Openness_reversed_dict.json "
    "--output published --layers 32 --neurons 14336`",
)
def import_files(
    files: Annotated[list[Path], typer.Argument(help="The paper's files; a file's name tells its target.")],
    output: Annotated[Path, typer.Option(help="Folder for the neurons and the interventions; may hold earlier ones.")],
    *,
    layers: Annotated[int | None, typer.Option(help="Layers of the model.")] = None,
    neurons: Annotated[int | None, typer.Option(help="Neurons of a layer.")] = None,
    model: Annotated[str | None, typer.Option(help="The model, instead of --layers and --neurons.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None,
) -> None:
    """Make the paper's neuron files ready to steer with.

    The files tell neither the model nor its size; those that were released are of LLaMA-3-8B-Instruct (32 layers,
    14336 neurons). Steering toward one pole needs the files of both.
    """
    from personalitybench.neurons.exchange import import_official  # noqa: PLC0415

    identity, shape = _shape(layers, neurons, model, revision)
    imported = import_official(files, output, shape, identity)
    for target, count in imported.read.items():
        typer.echo(f"{target}: {count:,} neurons")
    for target in imported.waiting:
        typer.echo(f"{target}: no intervention yet, it needs the neurons of {target.opposite}, too")
    if imported.ready:
        metadata = {"method": "npti", "strength": 1.4, "artifact": str(output)}
        echo(f"Ready: {', '.join(map(str, imported.ready))}. To steer: --metadata '{json.dumps(metadata)}'")


def _shape(
    layers: int | None, neurons: int | None, model: str | None, revision: str | None
) -> tuple[ModelIdentity | None, tuple[int, int]]:
    if model is not None and layers is None and neurons is None:
        from personalitybench.neurons.exchange import shape_of_model  # noqa: PLC0415

        return shape_of_model(model, revision)
    if model is None and layers is not None and neurons is not None:
        return None, (layers, neurons)
    raise ConfigurationError(
        "say which model the neurons are of: either --model, or --layers and --neurons together (32 and 14336 for the "
        "released files)"
    )
