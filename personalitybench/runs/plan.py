"""``personalitybench run --dry-run``: what a suite would take, computed from files that are there.

Nothing is fetched, loaded, fitted, asked or written. Figures are upper bounds: every answer as long as it may be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from personalitybench.backends.loading import LOCAL_BACKENDS, check_loadable
from personalitybench.costs import FitPlan
from personalitybench.dry import dry_run
from personalitybench.errors import NotHereError
from personalitybench.judging import create_judge
from personalitybench.runs.call_folders import CallFolders
from personalitybench.runs.calls import Call, Tuning
from personalitybench.runs.plan_calls import PlannedCall, can_name, plan_calls
from personalitybench.runs.plan_data import planning_source, planning_wording
from personalitybench.runs.plan_fits import FitState, PlannedFit, plan_fits
from personalitybench.runs.plan_judges import PlannedJudge, plan_judges
from personalitybench.runs.plan_models import PlannedModel
from personalitybench.runs.plan_notes import plan_notes
from personalitybench.runs.progress import RunProgress
from personalitybench.runs.spending import set_budget
from personalitybench.runs.stages import STAGES, Run
from personalitybench.runs.suite import Suite
from personalitybench.runs.throughput import Throughput, parse_throughput

_RATING = 250  # bytes of a verdict with its explanation
_IDENTIFIED = 12  # bytes of a token of an identification answer: its number, and its share of the text


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class CallPlan(_Part):
    """A call. ``requests`` are those of its targets together; tokens are of those that are not ``there``."""

    model: str
    call: str
    half: str
    stage: str
    strength_known: bool
    targets: int
    requests: int
    there: int
    prompt_tokens: int
    new_tokens: int


class FitLine(_Part):
    """A fit. ``takes`` is at most, and null where the method does not say; ``bytes`` null where they are not known."""

    model: str
    method: str
    seed: int
    state: FitState
    takes: FitPlan | None
    bytes: int | None


class JudgePlan(_Part):
    """A judge, or a member of a panel. Calls, tokens and cost are null where they are not known, 0 where it is free."""

    judge: str
    free: bool
    ratings: int
    there: int
    kept: int
    under_way: int
    calls: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    dollars: float | None
    about: str


class ModelPlan(_Part):
    """A model: what it would read, write and train, answers and fits together, and how long that takes.

    ``unknown_fits`` are those whose methods do not say what they take; their tokens are in no figure.
    """

    model: str
    backend: str
    here: bool
    weights_bytes: int | None
    own_tokenizer: bool
    prompt_tokens: int
    new_tokens: int
    trained_tokens: int
    unknown_fits: int
    throughput: Throughput | None
    hours: float | None


class DiskPlan(_Part):
    """Bytes that are written, roughly; of weights those that are not on this machine, which are null: not known."""

    answers: int
    ratings: int
    identification: int
    artifacts: int | None
    weights_to_fetch: list[str]


class Plan(_Part):
    """What a suite would take. ``notes`` say what was guessed and why."""

    suite: str
    folder: str
    calls: list[CallPlan]
    fits: list[FitLine]
    judges: list[JudgePlan]
    models: list[ModelPlan]
    disk: DiskPlan
    notes: list[str]


def make_plan(
    suite: Suite,
    folder: Path,
    *,
    stages: Sequence[str] = (),
    throughput: str | None = None,
    budget: float | None = None,
    batch: bool = False,
) -> Plan:
    """Plan a run.

    Args:
        suite: What would be run.
        folder: Where; what is there already is not planned again.
        stages: Which stages; all if empty.
        throughput: As the option ``--throughput``, for all models.
        budget: US dollars that each judge may cost.
        batch: Whether judges are asked in batches.

    Raises:
        PersonalityBenchError: What a run would refuse, or a file was altered.
    """
    chosen = set(stages or STAGES)
    with dry_run():
        source = planning_source(suite)
        wording, same_wording = planning_wording(suite)
        folders = CallFolders(suite, Run(suite, folder, _silent()).store, source, wording)
        run = Run(suite, folder, _silent(), folders)
        for judge in suite.judges:
            with suppress(NotHereError):  # the paper's rubric, which is fetched on first use
                create_judge(judge)
        run.check_methods()
        models = {spec.model_dump_json(): PlannedModel(spec) for spec in suite.models}
        calls = plan_calls(folders, _calls(run, models, same_wording=same_wording), models, same_wording=same_wording)
        for call in calls:
            if call.call.model.backend not in LOCAL_BACKENDS and any(call.missing.values()):
                check_loadable(call.call.model.backend, folders.model_arguments(call.call.model), key=False)
        fits = plan_fits(folders, calls, same_wording=same_wording) if "fit" in chosen else []
        tuned = [call for call in calls if call.stage == "tune"]
        reported = [call for call in calls if call.stage == "generate"]
        judges = plan_judges(
            suite.judges if "judge" in chosen else suite.judges[:1] if "tune" in chosen and tuned else [],
            tuned if "tune" in chosen else [],
            reported if "judge" in chosen else [],
            floors=suite.floors and "judge" in chosen,
            batch=batch,
        )
        known = [judge.name for judge in judges if judge.estimates is not None]
        set_budget(known, budget)
        asked = [call for call in calls if call.stage in chosen]
        stated = {key: _throughput(model, throughput) for key, model in models.items()}
        return Plan(
            suite=suite.name,
            folder=str(folder),
            calls=[_call(call) for call in asked],
            fits=[_fit(fit) for fit in fits],
            judges=[line for judge in judges for line in _judge(judge)],
            models=[_model(model, asked, fits, stated[key]) for key, model in models.items()],
            disk=_disk(asked, fits, judges, models.values()),
            notes=plan_notes(folders, models.values(), fits, judges, source.missing, same_wording=same_wording),
        )


def _calls(run: Run, models: Mapping[str, PlannedModel], *, same_wording: bool) -> list[tuple[str, Call, bool]]:
    """All calls: stage, call, and whether its strengths are known."""
    suite = run.suite
    found: list[tuple[str, Call, bool]] = [("tune", call, True) for each in suite.tunings() for call in each.calls()]
    undecided: list[str] = []

    def chosen(each: Tuning) -> dict[str, float]:
        known = same_wording and can_name(run.calls, models[each.model.model_dump_json()])
        strengths = run.chosen(each) if known else None
        if strengths is None:
            undecided.append(each.method.model_dump_json() + each.model.model_dump_json())
        return strengths or {str(target): max(each.strengths) for target in suite.parsed_targets()}

    for call in suite.reported(chosen):
        open_ = call.method.model_dump_json() + call.model.model_dump_json() in undecided
        found.append(("generate", call, not open_))
    return found


def _silent() -> RunProgress:
    return RunProgress(Console(quiet=True))


def _throughput(model: PlannedModel, given: str | None) -> Throughput | None:
    own = model.spec.throughput
    return own if given is None else parse_throughput(given, own)


def _call(call: PlannedCall) -> CallPlan:
    prompt, new, _ = call.sizes
    return CallPlan(
        model=call.model.spec.name,
        call=call.call.label,
        half=call.call.half,
        stage=call.stage,
        strength_known=call.decided,
        targets=len(call.questions),
        requests=call.requests,
        there=call.requests - call.to_ask,
        prompt_tokens=prompt,
        new_tokens=new,
    )


def _fit(fit: PlannedFit) -> FitLine:
    size = fit.bytes if fit.due else 0
    return FitLine(
        model=fit.model.spec.name, method=fit.method, seed=fit.seed, state=fit.state, takes=fit.plan, bytes=size
    )


def _judge(judge: PlannedJudge) -> list[JudgePlan]:
    if judge.estimates is None:
        return [
            JudgePlan(
                judge=judge.name, free=False, ratings=judge.ratings, there=judge.there, kept=0, under_way=0,
                calls=None, prompt_tokens=None, completion_tokens=None, dollars=None, about="",
            )
        ]  # fmt: skip
    lines = []
    for one in judge.estimates:
        found = one.estimate
        lines.append(
            JudgePlan(
                judge=one.judge,
                free=found is None,
                ratings=one.ratings,
                there=judge.there,
                kept=0 if found is None else found.kept,
                under_way=0 if found is None else found.under_way,
                calls=0 if found is None else found.calls,
                prompt_tokens=0 if found is None else found.prompt_tokens,
                completion_tokens=0 if found is None else found.completion_tokens,
                dollars=0.0 if found is None else found.dollars,
                about=one.about,
            )
        )
    return lines


def _model(
    model: PlannedModel, calls: Sequence[PlannedCall], fits: Sequence[PlannedFit], throughput: Throughput | None
) -> ModelPlan:
    asked = [call.sizes for call in calls if call.model is model]
    due = [fit for fit in fits if fit.model is model and fit.due]
    plans = [fit.plan for fit in due if fit.plan is not None]
    prompt = sum(size[0] for size in asked) + sum(plan.prompt_tokens + plan.read_tokens for plan in plans)
    new = sum(size[1] for size in asked) + sum(plan.new_tokens for plan in plans)
    trained = sum(plan.trained_tokens for plan in plans)
    seconds = None if throughput is None else throughput.seconds(prompt, new, trained)
    return ModelPlan(
        model=model.spec.name,
        backend=model.spec.backend,
        here=not model.missing,
        weights_bytes=model.weights,
        own_tokenizer=model.counts_exactly,
        prompt_tokens=prompt,
        new_tokens=new,
        trained_tokens=trained,
        unknown_fits=len(due) - len(plans),
        throughput=throughput,
        hours=None if seconds is None else seconds / 3600,
    )


def _disk(
    calls: Sequence[PlannedCall],
    fits: Sequence[PlannedFit],
    judges: Sequence[PlannedJudge],
    models: Collection[PlannedModel],
) -> DiskPlan:
    due = [fit for fit in fits if fit.due]
    tokens = sum(fit.plan.prompt_tokens + fit.plan.new_tokens for fit in due if fit.plan is not None)
    artifacts = [fit.bytes for fit in due]
    return DiskPlan(
        answers=sum(call.sizes[2] for call in calls),
        ratings=sum(judge.ratings for judge in judges) * _RATING,
        identification=tokens * _IDENTIFIED,
        artifacts=None if None in artifacts else sum(size or 0 for size in artifacts),
        weights_to_fetch=[
            model.spec.name for model in models if model.spec.backend in LOCAL_BACKENDS and model.weights is None
        ],
    )
