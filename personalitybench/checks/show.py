"""Methods and results of checks as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from personalitybench.backends.needs import CAPABILITIES
from personalitybench.checks.results import Outcome, Result
from personalitybench.checks.settings_table import describe_settings
from personalitybench.errors import ConfigurationError, PersonalityBenchError
from personalitybench.methods import methods

GUIDE = "docs/add-a-method.md"
COLOURS = {Outcome.PASS: "green", Outcome.NOTE: "yellow", Outcome.SKIP: "dim", Outcome.FAIL: "bold red"}


def show_list(console: Console) -> None:
    """Print all methods."""
    whole = [Column(name, overflow="fold") for name in ("method", "needs", "settings")]
    table = Table(whole[0], "strength", whole[1], whole[2], "what it does")
    for name in methods.names():
        try:
            table.add_row(*_method_cells(name))
        except Exception as error:  # noqa: BLE001 (a package of somebody else, whatever it raises)
            known = isinstance(error, PersonalityBenchError)
            reason = str(error) if known else f"it is no method: {type(error).__name__}: {error}"
            table.add_row(name, "", "", Text("no", style="red"), reason)
    console.print(table)


def _method_cells(name: str) -> list[str]:
    kind = methods.get(name)
    settings = ", ".join(f"{key}={field.default}" for key, field in kind.Settings.model_fields.items())
    needs = ", ".join(sorted(kind.needs)) or "nothing"
    strength = "yes" if kind.has_strength else "no"
    return [f"{name} ({kind.version})", strength, needs, settings or "–", str(kind.summary)]


def show_method(name: str, console: Console) -> None:
    """Print one method: what it is, what it needs and who can give that, and its settings.

    Raises:
        ConfigurationError: There is no such method, or it lacks what a method has.
    """
    kind = methods.get(name)
    try:
        _method_cells(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{name!r} is no method ({reason}): 'methods check {name}' tests it") from error
    able = sorted(backend for backend, can in CAPABILITIES.items() if kind.needs <= can)
    served = "any backend" if not kind.needs else ", ".join(able) or "no backend of this version"
    lines = {
        "method": f"{name}, version {kind.version}: {kind.summary}",
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "needs": f"{', '.join(sorted(kind.needs)) or 'nothing but a prompt'} ({served})",
        "strength": "yes: it scales the effect" if kind.has_strength else "no",
    }
    for title, text in lines.items():
        console.print(f"{title + ':':10}{text}", soft_wrap=True)
    described = describe_settings(kind.Settings)
    if not described:
        console.print("settings: none")
        return
    table = Table("setting", "default", Column("values", overflow="fold"), Column("what it is for", overflow="fold"))
    for one in described:
        table.add_row(one.name, one.default, one.values, one.about)
    console.print(table)


def show_results(name: str, results: Sequence[Result], console: Console) -> None:
    """Print what came of the checks, and the promises that are not kept."""
    table = Table("check", "result", Column("what was found", overflow="fold"), Column("s", justify="right"))
    for result in results:
        colour = COLOURS[result.outcome]
        took = f"{result.seconds:.1f}" if result.seconds >= 0.05 else ""
        table.add_row(result.check, Text(result.outcome, style=colour), result.reason, took)
    console.print(table)
    failed = [result for result in results if result.outcome is Outcome.FAIL]
    for result in failed:
        console.print(f"{result.check} promises: {result.promise}", soft_wrap=True)
    passed = sum(result.outcome in {Outcome.PASS, Outcome.NOTE} for result in results)
    counted = f"{passed} passed, {len(failed)} failed, {len(results) - passed - len(failed)} skipped"
    hint = f"; the contract is in {GUIDE}" if failed else ""
    console.print(f"{name}: {counted}{hint}", soft_wrap=True)
