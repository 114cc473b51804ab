"""The command line. Each command parses its arguments and calls one function; nothing heavy is imported for help."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personalitybench import __version__
from personalitybench.artifacts.commands import artifacts_app
from personalitybench.checks.commands import methods_app
from personalitybench.errors import ConfigurationError
from personalitybench.failures import DEFECT, describe_failure, format_traceback, is_from_console, wants_traceback
from personalitybench.interrupts import INTERRUPTED, resumable
from personalitybench.neurons.commands import neurons_app
from personalitybench.options import AllowHost, Budget, Calibrations, DryRun, TrustRemoteCode
from personalitybench.outside_text import echo, echo_path, prepare_output, single_line
from personalitybench.runs.judges_commands import judges_app
from personalitybench.streams import (
    discard_output,
    end_by_broken_pipe,
    is_reader_gone,
    open_closed_streams,
    output_error,
)

if TYPE_CHECKING:
    from rich.console import Console

    from personalitybench.leaderboard.schema import Leaderboard

app = typer.Typer(
    name="personalitybench",
    help="Benchmark of methods that make language models show a personality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="First steps: `personalitybench doctor`, then `personalitybench run demo`.",
)
boards_app = typer.Typer(no_args_is_help=True, help="Make, check and show leaderboards.", rich_markup_mode="markdown")
app.add_typer(boards_app, name="leaderboard")
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(judges_app, name="judges")
app.add_typer(methods_app, name="methods")
app.add_typer(neurons_app, name="neurons")

LM_EVAL_CONTEXT = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def main() -> None:
    """Run the command line; whatever goes wrong is one line, and the exit status is not 0."""
    open_closed_streams()
    prepare_output()
    logging.getLogger("stamina").setLevel(logging.ERROR)  # what failed is said once, in our own words
    status = _run()
    if (error := output_error()) is not None:
        if status == 0:
            error.filename = "standard output"
            status = _report(error)
        discard_output()
    sys.exit(status)


def _run() -> int:
    try:
        app()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer makes this of it, also where it is a socket's
            return _report(end.__context__)
        if isinstance(end.code, str):
            echo(end.code, err=True)
            return DEFECT
        return end.code or 0
    except KeyboardInterrupt:
        echo("personalitybench: interrupted", err=True)
        return INTERRUPTED
    except BaseException as error:  # noqa: BLE001 (the boundary; panics of Rust libraries are no Exception)
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    """Print the line for an error; returns the exit status."""
    if isinstance(error, BrokenPipeError) and (is_reader_gone() or is_from_console(error)):
        end_by_broken_pipe()
    if wants_traceback():
        echo(format_traceback(error), err=True)
    text, status = describe_failure(error)
    echo(f"personalitybench: {single_line(text)}", err=True)
    return status


def _console() -> Console:
    from personalitybench.console import PlainConsole  # noqa: PLC0415

    return PlainConsole()


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(
    epilog="Examples: `personalitybench run demo` · `personalitybench run my-suite.yaml --output runs/mine` · "
    "`personalitybench run demo --stage judge --stage score` · `personalitybench run paper-table1 --dry-run`"
)
def run(
    suite: Annotated[str, typer.Argument(help="A suite file, or the name of a bundled suite such as 'demo'.")],
    *,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage (repeatable): fit, tune, generate, judge, score.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Local copy of the official data; PERSONALITYBENCH_DATA does the same."),
    ] = None,
    budget: Budget = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Ask judges through OpenAI's Batch API: cheaper, within a day.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what it would take: requests, tokens, fits, cost, hours, disk."),
    ] = False,
    throughput: Annotated[
        str | None,
        typer.Option(help="With --dry-run: tokens per second, prompt=20000,new=2500,trained=4000."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    trust_remote_code: TrustRemoteCode = False,  # noqa: ARG001 (its callback acts)
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Run a suite: answers, ratings, leaderboard. Interrupt it when you like; the same command resumes.

    Stages: `fit` does what a method does once for a model; `tune` chooses strengths on the dev half (methods with
    `choose_on: dev`); `generate` asks the questions; `judge` rates the answers; `score` makes the board.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; our own progress says it all
    if not dry_run and (throughput is not None or as_json):
        raise ConfigurationError("--throughput and --json belong to --dry-run: add it, or leave them out")
    from personalitybench.runs.command import plan_suite, run_suite  # noqa: PLC0415

    if dry_run:
        plan_suite(
            suite, output, stage or [], _console(), data_dir=data_dir, budget=budget, batch=batch,
            throughput=throughput, as_json=as_json,
        )  # fmt: skip
        return
    with resumable():
        run_suite(suite, output, stage or [], _console(), data_dir=data_dir, budget=budget, batch=batch)


@app.command(
    epilog="Examples: `personalitybench judge runs/demo --judge my-server.yaml --dry-run` · "
    "`personalitybench judge runs/demo --judge gpt-4o-2024-08-06` · "
    "`personalitybench judge runs/demo --judge gpt-4o-2024-08-06 --batch` · "
    "`personalitybench judge lm-eval-output --judge offline`"
)
def judge(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a run, such as runs/demo, or one that lm_eval was given as --output_path."),
    ],
    *,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help="A judge's id or profile file (repeatable); default: the suite's judges."),
    ] = None,
    budget: Budget = None,
    dry_run: DryRun = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Ask judges through OpenAI's Batch API: cheaper, within a day.")
    ] = False,
    floors: Annotated[
        bool | None,
        typer.Option(help="Floors: what the judge gives to answers that show no trait; default: as the suite says."),
    ] = None,
    calibration: Calibrations = None,
    trust_remote_code: TrustRemoteCode = False,  # noqa: ARG001 (its callback acts)
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Have saved answers rated by a judge, and make its board; the model that wrote them is not needed.

    Interrupt it when you like: replies that were paid are kept, and the same command goes on from there. With
    `--batch` what was sent goes on at the server meanwhile.
    """
    from personalitybench.runs.judge_command import judge_run  # noqa: PLC0415

    with resumable():
        judge_run(
            folder,
            judges or [],
            _console(),
            budget=budget,
            dry_run=dry_run,
            batch=batch,
            floors=floors,
            calibrations=calibration or [],
        )


@app.command(
    epilog="Examples: `personalitybench fit npti --model demo --model-args dtype=bfloat16 --questions 64` · "
    "`personalitybench fit npti --model meta-llama/Meta-Llama-3-8B-Instruct --backend vllm --source official` · "
    "`personalitybench fit npti --model demo --set selection=released-code --set max_tokens=100`"
)
def fit(
    method: Annotated[str, typer.Argument(help="Induction method; `personalitybench methods` lists them.")],
    *,
    model: Annotated[str, typer.Option(help="A local folder, a hub name, or 'demo'.")],
    backend: Annotated[str, typer.Option(help="lm-eval model type that the model will answer under.")] = "hf",
    model_args: Annotated[
        str, typer.Option(help="Its arguments, as lm-eval's `--model_args`: dtype=bfloat16,trust_remote_code=true.")
    ] = "",
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None,
    device: Annotated[str | None, typer.Option(help="Torch device; default: the first GPU, else the CPU.")] = None,
    questions: Annotated[
        str | None, typer.Option(help="Identification questions of each trait, a number or 'all'; sets 'questions'.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Answers at a time; sets 'batch_size'.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the method (repeatable).")
    ] = None,
    source: Annotated[str, typer.Option(help="sample, or official: the paper's questions.")] = "sample",
    data_dir: Annotated[Path | None, typer.Option(help="Local copy of the official data.")] = None,
    prompts: Annotated[str, typer.Option(help="Wording: project or official.")] = "project",
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    trust_remote_code: TrustRemoteCode = False,  # noqa: ARG001 (its callback acts)
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Fit a method to a model, once: find NPTI's neurons, say. A suite finds what is fitted; interrupt and resume."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from personalitybench.runs.fit_command import FitOptions, fit_method  # noqa: PLC0415

    given = {"questions": questions, "batch_size": batch_size}
    options = FitOptions(
        method=method,
        model=model,
        backend=backend,
        model_args=model_args,
        revision=revision,
        device=device,
        settings=[*(settings or []), *(f"{name}={value}" for name, value in given.items() if value is not None)],
        source=source,
        data_dir=data_dir,
        prompts=prompts,
        seed=seed,
    )
    with resumable():
        fit_method(options, _console())


@app.command()
def doctor() -> None:
    """Say what this machine can run, and what to install for the rest."""
    from personalitybench.doctor import examine, show  # noqa: PLC0415

    show(examine(), _console())


@app.command(
    epilog='Example: `lm_eval --include_path "$(personalitybench tasks)" --tasks personalitybench --model hf ...`'
)
def tasks() -> None:
    """Print the folder of the lm-eval tasks, for `lm_eval --include_path`."""
    from personalitybench.resources import bundled  # noqa: PLC0415

    echo_path(bundled("tasks"))


@app.command(epilog="Example: `lm_eval --model hf --model_args pretrained=$(personalitybench model demo) ...`")
def model(
    name: Annotated[str, typer.Argument(help="A folder, a hub name, or 'demo'.")] = "demo",
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
) -> None:
    """Print where a model is, fetching the demo model on first use."""
    from personalitybench.models import resolve_model  # noqa: PLC0415

    echo_path(resolve_model(name, revision).location)


@app.command(
    "lm-eval",
    context_settings=LM_EVAL_CONTEXT,
    epilog="Example: `personalitybench lm-eval --tasks personalitybench --model hf --model_args pretrained=...`",
)
def lm_eval(
    context: typer.Context,
    *,
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Run lm-eval's own command line with our tasks registered; all arguments but `--allow-host` are lm-eval's."""
    from personalitybench.lm_eval_entry import run_lm_eval  # noqa: PLC0415

    run_lm_eval(context.args)


@app.command("install-tasks")
def install_tasks(
    uninstall: Annotated[bool, typer.Option("--uninstall", help="Take away exactly what was put there.")] = False,
) -> None:
    """Copy the task files into the installed lm-eval, so that `lm_eval --tasks personalitybench` works as it is."""
    from personalitybench import lm_eval_entry  # noqa: PLC0415

    typer.echo(lm_eval_entry.uninstall_tasks() if uninstall else lm_eval_entry.install_tasks())


@boards_app.command("from-lm-eval")
def board_from_lm_eval(
    folders: Annotated[list[Path], typer.Argument(help="Folders given to lm_eval as --output_path.")],
    *,
    output: Annotated[Path, typer.Option(help="Folder for the board.")] = Path("board"),
    name: Annotated[str, typer.Option(help="Name of the board.")] = "lm-eval",
    floors: Annotated[
        bool, typer.Option(help="Floors: what the judge gives to answers that show no trait; rated once on a machine.")
    ] = True,
    calibration: Calibrations = None,
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Make a board of each judge from lm-eval's results and samples (`--output_path ... --log_samples`)."""
    from personalitybench.runs.boards import publish  # noqa: PLC0415
    from personalitybench.runs.lm_eval_board import boards_of_folders  # noqa: PLC0415

    console = _console()
    with resumable():
        boards = boards_of_folders(folders, name, console, floors=floors, calibrations=calibration or [])
    publish(boards, output, list(boards)[:1], console)


@boards_app.command("show")
def board_show(
    board: Annotated[Path, typer.Argument(help="A leaderboard JSON file.")],
    output: Annotated[Path | None, typer.Option(help="Write the table and the page here, too.")] = None,
) -> None:
    """Print a board file as a table: its figures as the file says; `verify` computes them anew."""
    from personalitybench.leaderboard.render import read_board  # noqa: PLC0415

    _show_and_write(read_board(board), output)


def _show_and_write(board: Leaderboard, output: Path | None) -> None:
    from personalitybench.leaderboard.render import origin_note, write_board  # noqa: PLC0415
    from personalitybench.leaderboard.summary import board_table  # noqa: PLC0415

    console = _console()
    console.print(board_table(board))
    console.print(origin_note(board))
    if output is not None:
        for path in write_board(board, output):
            console.print(str(path), soft_wrap=True)


@boards_app.command(
    "verify",
    epilog="Examples: `personalitybench leaderboard verify runs/demo` · "
    "`personalitybench leaderboard verify out --board board/leaderboard.json`",
)
def board_verify(
    folders: Annotated[
        list[Path], typer.Argument(help="Folder of a run, or folders that lm_eval was given as --output_path.")
    ],
    board: Annotated[
        list[Path] | None, typer.Option(help="A board file (repeatable); default: all leaderboard*.json of the folder.")
    ] = None,
    calibration: Calibrations = None,
) -> None:
    """Compute boards anew from the answers and ratings, and compare every figure.

    A line for each difference, with both values. Exit status 0: no difference; 2: a difference, or nothing to compare.
    """
    from personalitybench.runs.verify import verify_boards  # noqa: PLC0415

    verify_boards(folders, board or [], _console(), calibration or [])


@boards_app.command("schema")
def board_schema() -> None:
    """Print the JSON Schema of a leaderboard file."""
    import json  # noqa: PLC0415

    from personalitybench.leaderboard.schema import Leaderboard as Board  # noqa: PLC0415

    typer.echo(json.dumps(Board.model_json_schema(), indent=2))


if __name__ == "__main__":
    main()
