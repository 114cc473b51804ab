"""All checks in their order, and how they are run: what is cheap comes first, what needs a model last."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from personalitybench.backends.loading import quiet_libraries
from personalitybench.checks import answers, contract, determinism, fits, inductions
from personalitybench.checks.results import (
    BrokenPromiseError,
    Check,
    NotCheckedError,
    Note,
    Outcome,
    Result,
    describe_error,
)
from personalitybench.checks.subject import Subject, Wanted, has_torch
from personalitybench.checks.workshop import Workshop
from personalitybench.errors import ConfigurationError
from personalitybench.validation import validate

OF_THE_CLASS = (Check("contract", contract.contract), Check("settings", contract.settings))
OF_AN_INSTANCE = (
    Check("fit", fits.fit),
    Check("serialisable", inductions.serialisable),
    Check("question", inductions.question),
    Check("deterministic", determinism.deterministic),
    Check("strength", inductions.strength),
    Check("needs", inductions.needs),
    Check("poles", inductions.poles),
    Check("fit-repeats", fits.fit_repeats),
    Check("fit-resumes", fits.fit_resumes),
    Check("fit-restores", fits.fit_restores),
    Check("model", answers.model),
)
CHECKS: tuple[Check, ...] = (*OF_THE_CLASS, *OF_AN_INSTANCE)

Starting = Callable[[str], None]


def run_checks(wanted: Wanted, *, keep_going: bool = False, starting: Starting = lambda _: None) -> list[Result]:
    """Check a method.

    Args:
        wanted: What to check.
        keep_going: Go on after a failure with what can still be checked.
        starting: Told the name of each check before it is run.

    Returns:
        A result for each of :data:`CHECKS`.

    Raises:
        PersonalityBenchError: What the user asked for cannot be: no such method, setting, model or backend.
    """
    with tempfile.TemporaryDirectory(prefix="personalitybench-check-") as root, quiet_libraries():
        subject = Subject(wanted, Workshop(Path(root)))
        _refuse_wrong_options(subject)
        results = _run(OF_THE_CLASS, subject, starting)
        failed = [result.check for result in results if result.outcome is Outcome.FAIL]
        if failed and (failed == ["contract"] or not keep_going):
            hint = "--keep-going runs it all the same" if failed != ["contract"] else "nothing works without it"
            return [*results, *_left_out(OF_AN_INSTANCE, hint)]
        subject.fits_nothing = not subject.needs and fits.fits_nothing(subject)
        if wanted.model is not None and has_torch() and not subject.fits_nothing:
            starting("the model")
            answers.prepare(subject, wanted.model)
        return [*results, *_run(OF_AN_INSTANCE, subject, starting, keep_going=keep_going)]


def _refuse_wrong_options(subject: Subject) -> None:
    """See that what the user set can be set.

    Raises:
        ConfigurationError: A setting or the strength is wrong.
    """
    wanted, kind = subject.wanted, subject.kind
    if wanted.settings and hasattr(kind, "Settings"):
        validate(kind.Settings, wanted.settings, f"settings of method {wanted.name!r}")
    if wanted.strength is not None and not getattr(kind, "has_strength", True):
        raise ConfigurationError(f"method {wanted.name!r} has no strength: leave it out")


def _run(checks: Sequence[Check], subject: Subject, starting: Starting, *, keep_going: bool = False) -> list[Result]:
    results: list[Result] = []
    for index, check in enumerate(checks):
        starting(check.name)
        results.append(_run_one(check, subject))
        if results[-1].outcome is Outcome.FAIL and not keep_going:
            return [*results, *_left_out(checks[index + 1 :], "--keep-going runs it all the same")]
    return results


def _run_one(check: Check, subject: Subject) -> Result:
    started = time.monotonic()
    result = Result(check.name, check.promise, Outcome.PASS, "")
    try:
        reason = check.run(subject)
    except BrokenPromiseError as error:
        result = replace(result, outcome=Outcome.FAIL, reason=str(error))
    except NotCheckedError as error:
        result = replace(result, outcome=Outcome.SKIP, reason=str(error))
    except Exception as error:  # noqa: BLE001 (whatever a method of somebody else raises, where nobody expected it)
        result = replace(result, outcome=Outcome.FAIL, reason=f"raised {describe_error(error, subject.kind)}")
    else:
        result = replace(result, outcome=Outcome.NOTE if isinstance(reason, Note) else Outcome.PASS, reason=str(reason))
    return replace(result, seconds=time.monotonic() - started)


def _left_out(checks: Sequence[Check], hint: str) -> list[Result]:
    reason = f"not run, since a check before it failed ({hint})"
    return [Result(check.name, check.promise, Outcome.SKIP, reason) for check in checks]
