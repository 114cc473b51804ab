"""A plan on a terminal of 80 columns, or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from personalitybench.costs import describe_bytes
from personalitybench.runs.plan import FitLine, JudgePlan, ModelPlan, Plan
from personalitybench.runs.throughput import FORMULA


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan."""
    several = len(plan.models) > 1
    parts: list[tuple[str, Callable[[], Table]]] = []
    if plan.calls:
        parts.append(("answers", lambda: _calls(plan, several=several)))
    if plan.fits:
        parts.append(("fits (once for a model, kept in the cache)", lambda: _fits(plan, several=several)))
    if plan.judges:
        parts.append(("ratings", lambda: _judges(plan)))
    parts += [("model", lambda: _models(plan)), ("disk, roughly", lambda: _disk(plan))]
    console.print(f"suite {plan.suite}, folder {plan.folder}: nothing was run")
    for title, table in parts:
        console.print(f"\n{title}", style="bold")
        console.print(table())
    console.print()
    for line in (*_hours(plan.models), *plan.notes):
        console.print(f"- {line}")


def _table(*columns: str, words: int) -> Table:
    """A table whose first columns are words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < words else "right", overflow="fold")
    return table


def _calls(plan: Plan, *, several: bool) -> Table:
    named = ["model"] if several else []
    table = _table(*named, "call", "half", "requests", "there", "prompt tok.", "new tok. ≤", words=2 + several)
    for call in plan.calls:
        label = call.call if call.strength_known else f"{call.call} (not chosen yet)"
        numbers = (call.requests, call.there, call.prompt_tokens, call.new_tokens)
        table.add_row(*([call.model] if several else []), label, call.half, *(f"{number:,}" for number in numbers))
    table.add_section()
    totals = [
        sum(column)
        for column in zip(
            *((call.requests, call.there, call.prompt_tokens, call.new_tokens) for call in plan.calls), strict=True
        )
    ]
    table.add_row(*([""] * several), "all", "", *(f"{number:,}" for number in totals))
    return table


def _fits(plan: Plan, *, several: bool) -> Table:
    named = ["model"] if several else []
    table = _table(
        *named, "fit", "state", "answers ≤", "prompt tok.", "new tok. ≤", "read ≤", "trained ≤", words=2 + several
    )
    for fit in plan.fits:
        label = f"{fit.method} seed {fit.seed}" if fit.seed else fit.method
        table.add_row(*([fit.model] if several else []), label, fit.state, *_takes(fit))
    return table


def _takes(fit: FitLine) -> Iterator[str]:
    if fit.takes is None:
        yield from ["unknown" if fit.state in {"to do", "begun"} else "–", *["–"] * 4]
        return
    found = fit.takes
    for number in (found.requests, found.prompt_tokens, found.new_tokens, found.read_tokens, found.trained_tokens):
        yield short(number)


def _judges(plan: Plan) -> Table:
    batched = any(judge.under_way for judge in plan.judges)
    middle = ["batched"] if batched else []
    table = _table("judge", "ratings", "there", *middle, "calls ≤", "sent tok.", "written", "US $ ≤", words=1)
    for judge in plan.judges:
        there = judge.there + judge.kept
        own = [f"{judge.under_way:,}"] if batched else []
        table.add_row(judge.judge, f"{judge.ratings:,}", f"{there:,}", *own, *_cost(judge))
    for about in dict.fromkeys(judge.about for judge in plan.judges if judge.about):
        table.caption = f"{about}; tokens guessed from above"
        table.caption_justify = "left"
    return table


def _cost(judge: JudgePlan) -> Iterator[str]:
    if judge.free:
        yield from ("–", "–", "–", "free")
        return
    for number in (judge.calls, judge.prompt_tokens, judge.completion_tokens):
        yield "?" if number is None else short(number)
    if judge.calls is None:
        yield "not known"
    else:
        yield "no price" if judge.dollars is None else f"{judge.dollars:,.2f}"


def _models(plan: Plan) -> Table:
    table = _table("model", "tokens by", "prompt tok.", "new tok. ≤", "trained ≤", "GPU hours ≤", words=2)
    for model in plan.models:
        counted = "tokenizer" if model.own_tokenizer else "guess"
        numbers = (model.prompt_tokens, model.new_tokens, model.trained_tokens)
        table.add_row(model.model, counted, *(short(number) for number in numbers), _hours_cell(model))
    return table


def _hours_cell(model: ModelPlan) -> str:
    if model.hours is None:
        return "not stated"
    hours = f"{model.hours:.1f}" if model.hours >= 0.1 or not model.hours else f"{model.hours:.2g}"
    return f"{hours} + ?" if model.unknown_fits else hours


def _hours(models: list[ModelPlan]) -> Iterator[str]:
    """Where hours come from, or how to have them."""
    for model in models:
        speed = model.throughput
        if speed is None:
            yield (
                f"hours of {model.model} are not estimated: state its tokens per second with --throughput "
                "prompt=20000,new=2500,trained=4000, or with the key 'throughput' of the model in the suite"
            )
            continue
        trained = "not stated" if speed.trained is None else f"{speed.trained:,.0f}"
        yield (
            f"hours of {model.model} = {FORMULA}, at {speed.prompt:,.0f}, {speed.new:,.0f} and {trained} tokens/s. "
            f"Stated, not measured: {speed.stated}"
        )
        if model.hours is None:
            yield f"training of {model.model} is planned, and how fast it trains is not stated (trained=...)"


def _disk(plan: Plan) -> Table:
    disk = plan.disk
    table = _table("what", "size", words=1)
    table.add_row("answers", describe_bytes(disk.answers))
    table.add_row("ratings", describe_bytes(disk.ratings))
    if any(fit.state in {"to do", "begun"} for fit in plan.fits):
        table.add_row("identification answers", describe_bytes(disk.identification))
        artifacts = "not known" if disk.artifacts is None else describe_bytes(disk.artifacts)
        table.add_row("statistics and artifacts", artifacts)
    for model in plan.models:
        if model.weights_bytes is not None:
            table.add_row(f"weights of {model.model}", f"here ({describe_bytes(model.weights_bytes)})")
    for name in disk.weights_to_fetch:
        table.add_row(f"weights of {name}", "not here, size not known")
    return table


def short(number: int) -> str:
    """A number that fits a narrow column: whole up to a million, then in millions."""
    if number < 1_000_000:
        return f"{number:,}"
    return f"{number / 1_000_000:,.1f} M" if number < 1_000_000_000 else f"{number / 1_000_000_000:,.2f} G"
