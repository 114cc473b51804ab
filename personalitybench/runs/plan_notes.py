"""What a reader of a plan must know: what was guessed, what is not on this machine, what no figure holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from personalitybench.host_policy import destinations
from personalitybench.judging.base import load_profile
from personalitybench.runs.call_folders import CallFolders
from personalitybench.runs.plan_calls import can_name
from personalitybench.runs.plan_data import HOW_TO_GET
from personalitybench.runs.plan_fits import PlannedFit
from personalitybench.runs.plan_judges import PlannedJudge
from personalitybench.runs.plan_models import PlannedModel
from personalitybench.runs.rating import RATINGS


def plan_notes(
    folders: CallFolders,
    models: Collection[PlannedModel],
    fits: Sequence[PlannedFit],
    judges: Sequence[PlannedJudge],
    missing: Collection[str],
    *,
    same_wording: bool,
) -> list[str]:
    """Notes on a plan, a line each.

    Args:
        folders: Where the suite's calls lie.
        models: Its models.
        fits: Its fits.
        judges: Its judges.
        missing: Official data that stand-ins took the place of.
        same_wording: Whether the wording is that of the run.
    """
    notes = [*_hosts(models, judges)]
    for model in models:
        if model.missing:
            known = same_wording and can_name(folders, model)
            rest = "" if known else "; answers and fits of it are not looked for, all counts as to do"
            notes.append(f"{model.missing}{rest}")
        if not model.counts_exactly:
            notes.append(
                f"prompt tokens of {model.spec.name} are guessed without its tokenizer: one for every three bytes, "
                "1.3 to 1.6 times too many for English"
            )
    if missing:
        notes.append(
            f"not on this machine: official {', '.join(sorted(missing))}. Their number is the paper's, their length "
            f"the usual one; {HOW_TO_GET}"
        )
    if not same_wording:
        notes.append(
            "the official wording is not on this machine: prompts are as long as in the project's; answers and fits "
            "are not looked for, all counts as to do"
        )
    if sharing := sorted({fit.method for fit in fits if fit.shares}):
        notes.append(f"{' and '.join(sharing)} learns from answers that stand in the line of another fit")
    if shapeless := sorted({fit.model.spec.name for fit in fits if fit.due and fit.lacks_shape}):
        notes.append(
            f"what the fits of {', '.join(shapeless)} leave on disk follows from the shape of the model, which its "
            "configuration says: that is not on this machine, or of an unknown form"
        )
    if any(fit.due and fit.plan is None for fit in fits):
        notes.append("what fits take whose methods do not say it is in no figure")
    if any(judge.estimates is not None and all(one.estimate is None for one in judge.estimates) for judge in judges):
        notes.append("judges that run on this machine cost nothing; their time is not in the hours")
    if any(judge.estimates is None for judge in judges):
        notes.append("the paper's rubric is not on this machine: what its judge costs is not known before it is")
    if any(judge.ratings for judge in judges):
        notes.append(
            f"each answer is rated {RATINGS} times; one that is not there yet is taken to be as long as it may be"
        )
    return notes


def _hosts(models: Collection[PlannedModel], judges: Sequence[PlannedJudge]) -> Iterator[str]:
    """Say which hosts get prompts and answers."""
    for model in models:
        spec = model.spec
        for host in sorted({each.host for each in destinations(spec.args, spec.backend)}):
            yield f"prompts of {spec.name} go to {host}"
    names = [judge.name for judge in judges]
    for name in names:
        profile = load_profile(name)
        if profile.provider == "panel":
            names += [member for member in profile.settings["judges"] if member not in names]
            continue
        provider = str(profile.settings.get("backend", profile.provider))
        for host in sorted({each.host for each in destinations(profile.settings | profile.client, provider)}):
            yield f"answers go to {host} (judge {profile.id})"
