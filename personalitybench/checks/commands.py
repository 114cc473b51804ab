"""``personalitybench methods``: list them, show one, check one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from personalitybench.options import AllowHost, TrustRemoteCode
from personalitybench.outside_text import echo

if TYPE_CHECKING:
    from rich.console import Console

methods_app = typer.Typer(
    invoke_without_command=True,
    help="List the induction methods, show what one is, check that one keeps the contract.",
    rich_markup_mode="markdown",
    epilog="Examples: `personalitybench methods` · `personalitybench methods show npti` · "
    "`personalitybench methods check my-package/diary`",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Registered name, such as p2 or my-package/diary.")]


def _console(*, stderr: bool = False) -> Console:
    from personalitybench.console import PlainConsole  # noqa: PLC0415

    return PlainConsole(stderr=stderr)


@methods_app.callback()
def _methods(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_methods()


@methods_app.command("list")
def list_methods() -> None:
    """List the induction methods and what each needs."""
    from personalitybench.checks.show import show_list  # noqa: PLC0415

    show_list(_console())


@methods_app.command("show", epilog="Example: `personalitybench methods show npti`")
def show(name: Name) -> None:
    """Show a method: what it needs, which backends can give that, and every setting."""
    from personalitybench.checks.show import show_method  # noqa: PLC0415

    show_method(name, _console())


@methods_app.command(
    "check",
    epilog="Examples: `personalitybench methods check my-package/diary` · "
    "`personalitybench methods check my-package/vectors --model my-model --set questions=8 --strength 1.5` · "
    "`personalitybench methods check npti --no-model --json`",
)
def check(
    name: Name,
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting, over the method's check_settings (repeatable)."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="What the method is fitted to: a local folder, a hub name, or 'demo'.")
    ] = "demo",
    no_model: Annotated[bool, typer.Option("--no-model", help="Leave out what needs a model.")] = False,
    backend: Annotated[str, typer.Option(help="lm-eval model type that answers.")] = "personalitybench-hf",
    model_args: Annotated[str, typer.Option(help="Its arguments, as lm-eval's `--model_args`.")] = "",
    device: Annotated[str | None, typer.Option(help="Torch device; default: the first GPU, else the CPU.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Ask at this strength; default 1, for methods with one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="After a failure, check what is left.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    trust_remote_code: TrustRemoteCode = False,  # noqa: ARG001 (its callback acts)
    allow_host: AllowHost = None,  # noqa: ARG001 (its callback acts)
) -> None:
    """Check that a method keeps the contract. Exit status 1 if it does not, 2 if it could not be asked to.

    A method that only prompts needs no model. One with needs is fitted to a small model, three times in part or
    whole, in a temporary folder: settings with which that takes seconds are its class attribute `check_settings`.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; our own progress says it all
    from rich.text import Text  # noqa: PLC0415

    from personalitybench.checks.results import Outcome  # noqa: PLC0415
    from personalitybench.checks.show import show_results  # noqa: PLC0415
    from personalitybench.checks.subject import Wanted  # noqa: PLC0415
    from personalitybench.checks.suite import run_checks  # noqa: PLC0415
    from personalitybench.validation import parse_model_arguments, parse_pairs  # noqa: PLC0415

    wanted = Wanted(
        name=name,
        settings=parse_pairs(settings or [], "--set"),
        strength=strength,
        model=None if no_model else model,
        backend=backend,
        model_args=parse_model_arguments(model_args),
        device=device,
        seed=seed,
    )
    with _console(stderr=True).status(Text(f"checking {name}")) as status:
        results = run_checks(
            wanted, keep_going=keep_going, starting=lambda what: status.update(Text(f"checking {name}: {what}"))
        )
    failed = any(result.outcome is Outcome.FAIL for result in results)
    if as_json:
        found = {"method": name, "passed": not failed, "checks": [result.to_json() for result in results]}
        echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show_results(name, results, _console())
    if failed:
        raise typer.Exit(1)
