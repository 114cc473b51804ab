"""Which fits a suite needs, which of them are there, and what the others would take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from personalitybench.artifacts.store import FIT, Fit
from personalitybench.costs import FitPlan
from personalitybench.files import content_hash
from personalitybench.methods import InductionMethod, create_method
from personalitybench.methods.identification_settings import answers_identity
from personalitybench.methods.ready import ready_sha256
from personalitybench.runs.call_folders import CallFolders
from personalitybench.runs.model_arguments import fit_arguments
from personalitybench.runs.plan_calls import PlannedCall, can_name
from personalitybench.runs.plan_models import PlannedModel

FitState = Literal["there", "begun", "to do", "not needed"]


@dataclass
class PlannedFit:
    """A fit.

    Attributes:
        method: Registered name of the method.
        model: Which model is fitted.
        seed: Of what is drawn.
        state: ``begun``: it was interrupted, and its plan is of the whole. ``not needed``: its answers are all there.
        plan: What it would take at most; None where the method does not say (it has no ``plan_fit``).
        answers: Name of the identification answers that it learns from, if it does.
        shares: Whether another fit's plan has the asking for these answers, and this one's not.
    """

    method: str
    model: PlannedModel
    seed: int
    state: FitState
    plan: FitPlan | None
    answers: str | None = None
    shares: bool = False

    @property
    def due(self) -> bool:
        """Whether a run would make it."""
        return self.state in {"begun", "to do"}

    @property
    def lacks_shape(self) -> bool:
        """Whether its size follows from the model's shape, and that is not known."""
        plan = self.plan
        return plan is not None and bool(plan.bytes_per_neuron or plan.bytes_per_width) and self.bytes is None

    @property
    def bytes(self) -> int | None:
        """What it leaves on disk, at most; None where that is not known."""
        plan, model = self.plan, self.model
        if plan is None or not (plan.bytes or plan.bytes_per_neuron or plan.bytes_per_width):
            return None  # the method does not say
        neurons = model.neurons if plan.bytes_per_neuron else 0
        widths = model.widths(plan.projections) if plan.bytes_per_width else 0
        if neurons is None or widths is None:
            return None
        return plan.bytes + plan.bytes_per_neuron * neurons + plan.bytes_per_width * widths


def plan_fits(folders: CallFolders, calls: Sequence[PlannedCall], *, same_wording: bool) -> list[PlannedFit]:
    """Plan the fits of calls; each once, however many calls and combinations share it."""
    needed: dict[str, tuple[Fit, PlannedCall, bool]] = {}
    for call in calls:
        known = same_wording and can_name(folders, call.model)
        for fit in _fits(folders, call, known=known):
            _, first, asked = needed.get(fit.label, (fit, call, False))
            needed[fit.label] = (fit, first, asked or bool(call.to_ask))
    found = []
    for fit, call, asked in needed.values():
        known = same_wording and can_name(folders, call.model)
        state = _state(fit, known=known) if asked else "there" if known and fit.artifact() is not None else "not needed"
        due = state in {"begun", "to do"}
        hook = getattr(fit.method, "plan_fit", None) if due else None
        plan = None if hook is None else hook(call.model.count)
        found.append(PlannedFit(fit.name, call.model, fit.method.context.seed, state, plan, _answers(fit)))
    _ask_once(found)
    return found


def _answers(fit: Fit) -> str | None:
    """Name of the identification answers that a fit learns from, or None."""
    about = {key: value for key, value in fit.identity.items() if key != "method"}
    try:
        return content_hash(answers_identity(about, fit.method.settings.for_fit()))
    except KeyError:
        return None


def _ask_once(fits: Sequence[PlannedFit]) -> None:
    """Leave the asking to one of the fits that learn from the same answers: the one that asks most."""
    groups: dict[str, list[PlannedFit]] = defaultdict(list)
    for fit in fits:
        if fit.due and fit.plan is not None and fit.answers is not None:
            groups[fit.answers].append(fit)
    for group in groups.values():
        asking = max(group, key=lambda fit: fit.plan.requests if fit.plan else 0)
        for fit in group:
            if fit is not asking and fit.plan is not None:
                fit.plan = replace(fit.plan, requests=0, prompt_tokens=0, new_tokens=0)
                fit.shares = True


def _state(fit: Fit, *, known: bool) -> FitState:
    if not known:
        return "to do"
    if fit.artifact() is not None:
        return "there"
    return "begun" if (fit.folder / FIT).is_file() else "to do"


def _fits(folders: CallFolders, planned: PlannedCall, *, known: bool) -> Iterator[Fit]:
    """The fits of a call: its method's own, or those of the parts that a combination is made of."""
    call, spec = planned.call, planned.call.model
    method = create_method(call.method.name, call.method.settings, folders.context(call.seed))
    record = folders.model_record(spec) if known else {"name": spec.name, "revision": "not known"}
    for name, each in _parts(call.method.name, method):
        if ready_sha256(each, folders.source, call.strength) is not None:
            continue
        if each.needs or hasattr(each, "plan_fit"):
            yield Fit(name, each, record, spec.backend, fit_arguments(spec))


def _parts(name: str, method: InductionMethod) -> Iterator[tuple[str, InductionMethod]]:
    parts: Mapping[str, InductionMethod] | None = getattr(method, "named_parts", None)
    if parts is None:
        yield name, method
    else:
        for part, each in parts.items():
            yield from _parts(part, each)
