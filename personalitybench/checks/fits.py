"""What a fit promises. Each is made in a temporary store; how often one is made is kept as small as it can be."""

from __future__ import annotations

from functools import partial
from typing import Any

from personalitybench.artifacts.store import Fit
from personalitybench.checks.results import BrokenPromiseError, NotCheckedError, Note, describe_error
from personalitybench.checks.subject import Subject
from personalitybench.errors import PersonalityBenchError
from personalitybench.files import content_hash
from personalitybench.methods import Artifact, FitContext
from personalitybench.methods.fitting import PROVENANCE

FIRST, STOPPED, FRESH = "first", "stopped", "fresh"
"""Stores: of the first fit; of one that is interrupted; of a third, made only to tell what went wrong."""


class Stopped(KeyboardInterrupt):  # as Ctrl-C is, so that nothing takes it for an error
    """The interruption that a fit is put to."""


def fit(subject: Subject) -> str:
    """A fit leaves its artifact in the folder that it is told, with its cost; a fit that is there is found again."""
    if subject.fits_nothing:
        subject.unfitted_because = "the method fits nothing"
        return "it fits nothing"
    subject.unfitted_because = subject.no_model()
    model = subject.need_model()
    subject.unfitted_because = "its fit failed"

    def count(*_: Any) -> None:
        subject.reports += 1

    made, calls = _make(subject, FIRST, count)
    if made is None:
        if not subject.needs:
            subject.unfitted_because = "the method fits nothing"
            return "it fits nothing"
        if subject.ready_sha256 is not None:
            subject.unfitted_because = "the method fits nothing"
            return f"it fits nothing; what it names is there, hash {subject.ready_sha256[:12]}"
        needs = " and ".join(sorted(subject.needs))
        raise BrokenPromiseError(
            f"fit returned None, but the method needs {needs}, and induce names no folder that is there: "
            "return Artifact.open(context.folder), or have a setting for the folder"
        )
    wanted = _fit(subject)
    with subject.workshop.store(FIRST):
        folder = wanted.folder / "artifact"
        if made.folder.resolve() != folder.resolve():
            raise BrokenPromiseError(f"the artifact is in {made.folder}, not in context.folder ({folder})")
        try:
            found = wanted.artifact()
        except PersonalityBenchError as error:
            raise BrokenPromiseError(f"the artifact cannot be opened again: {error}") from error
        if found is None or found.sha256 != made.sha256:
            raise BrokenPromiseError("the artifact's hash is not that of its files: return Artifact.open(folder)")
        cost = found.cost
    if cost is None or cost.seconds is None or cost.bytes != found.size:
        raise BrokenPromiseError(f"provenance.json holds no whole cost of the fit: {cost}")
    again, calls_later = _make(subject, FIRST)
    if calls_later != calls or again is None or again.sha256 != made.sha256:
        raise BrokenPromiseError("a fit that was complete was made again instead of being found")
    subject.fitted = found
    return f"{cost.bytes:,} bytes in {cost.seconds:.1f} s, fitted to {model.record['name']}"


def fits_nothing(subject: Subject) -> bool:
    """Whether a fit of a prompting method is over before it looks at a model, which then need not be there."""
    drawn = subject.context()
    folder = subject.workshop.root / "nothing" / "artifact"
    try:
        with subject.workshop.watched():
            made = subject.create().fit(
                FitContext("no-such-model", "no-such-model", "none", drawn.source, drawn.wording, folder, drawn.seed)
            )
    except Exception:  # noqa: BLE001 (whatever it is: it looked at the model, so it gets a real one)
        return False
    return made is None


def _fit(subject: Subject, seed: int | None = None) -> Fit:
    wanted, model = subject.wanted, subject.need_model()
    return Fit(wanted.name, subject.create(seed=seed), model.record, wanted.backend, wanted.model_args)


def _make(subject: Subject, store: str, report: Any = lambda *_: None) -> tuple[Artifact | None, int]:
    """Make the fit in a store.

    Raises:
        BrokenPromiseError: It raises something.
    """
    model, device = subject.need_model(), subject.wanted.device
    try:
        return subject.workshop.make(store, _fit(subject), model.location, device, report)
    except Exception as error:  # whatever a fit of somebody else raises
        raise BrokenPromiseError(f"fit raised {describe_error(error, subject.kind)}") from error


def fit_repeats(subject: Subject) -> str:
    """A fit from scratch under the same seed leaves the same files, and another seed is another fit."""
    first = subject.made()
    other = content_hash(_fit(subject, subject.wanted.seed + 1).identity)
    if other == content_hash(_fit(subject).identity):
        raise BrokenPromiseError("fits under two seeds have the same identity, so one would be taken for the other")
    try:
        if _stopped(subject).sha256 == first.sha256:  # made from scratch as well, so one fit is enough to tell
            return f"two fits, hash {first.sha256[:12]}"
    except BrokenPromiseError:
        pass  # told by the check that is about it
    fresh = _from_scratch(subject)
    if fresh.sha256 != first.sha256:
        names = ", ".join(_differing(first, fresh))
        raise BrokenPromiseError(
            f"two fits under one seed differ in {names}: draw with context.seed, and keep times and versions out of "
            "the artifact (provenance.json is not hashed)"
        )
    return f"two fits, hash {first.sha256[:12]}"


def fit_resumes(subject: Subject) -> str:
    """A fit that is interrupted goes on when it is made again, and leaves what it would have left."""
    first = subject.made()
    stopped = _stopped(subject)
    if stopped.sha256 != first.sha256:
        if _from_scratch(subject).sha256 != first.sha256:
            raise NotCheckedError("the fit leaves something else each time, interrupted or not: see fit-repeats")
        names = ", ".join(_differing(first, stopped))
        raise BrokenPromiseError(
            f"a fit that was interrupted left other files ({names}) than one that was not: what lies in "
            "context.folder and context.work may be half done, so check it or make it again"
        )
    if not subject.reports:
        return Note("it never calls context.report, so nobody sees how far it is, and it could not be interrupted here")
    return f"interrupted at reports {', '.join(map(str, _stops(subject)))} of {subject.reports}"


def fit_restores(subject: Subject) -> str:
    """A fit writes only where it is told, and leaves the process as it found it."""
    if subject.workshop.changes:
        changed = "; ".join(dict.fromkeys(subject.workshop.changes))
        raise BrokenPromiseError(f"fit left the process changed: {changed}. Put it back in a 'finally'")
    if subject.workshop.strays:
        strays = ", ".join(list(dict.fromkeys(subject.workshop.strays))[:4])
        raise BrokenPromiseError(
            f"fit wrote or deleted outside of context.folder, context.work and context.shared: {strays}"
        )
    if subject.fitted is None and subject.unfitted_because != "the method fits nothing":
        raise NotCheckedError(subject.unfitted_because)
    return "no file elsewhere; working directory and torch's settings as before"


def _stops(subject: Subject) -> list[int]:
    """At which report of a session a fit is interrupted: early, a little later, and amid what is left."""
    return sorted({1, 2, subject.reports // 2} & set(range(1, subject.reports + 1)))


def _stopped(subject: Subject) -> Artifact:
    """What a fit leaves that was interrupted on its way; made once.

    Raises:
        BrokenPromiseError: It does not end when interrupted, or fails afterwards.
    """
    kept = subject.later_fits
    if STOPPED not in kept:
        try:
            kept[STOPPED] = _interrupt_and_finish(subject)
        except BrokenPromiseError as error:
            kept[STOPPED] = error
    found: Artifact | BrokenPromiseError = kept[STOPPED]
    if isinstance(found, BrokenPromiseError):
        raise found
    return found


def _interrupt_and_finish(subject: Subject) -> Artifact:
    for stop in _stops(subject):
        told = 0

        def report(stop: int, *_: Any) -> None:
            nonlocal told
            told += 1
            if told == stop:
                raise Stopped

        try:
            _make(subject, STOPPED, partial(report, stop))
        except Stopped:
            pass
        else:
            if told >= stop:
                raise BrokenPromiseError(
                    f"fit went on although context.report was interrupted (Ctrl-C) at its call {stop}: catch "
                    "Exception, never BaseException"
                )
            break  # little was left to do
        with subject.workshop.store(STOPPED):
            if _fit(subject).artifact() is not None:
                raise BrokenPromiseError("a fit that was interrupted counts as complete")
    made, _ = _make(subject, STOPPED)
    if made is None:
        raise BrokenPromiseError("fit returned None when it was made again after an interruption")
    return made


def _from_scratch(subject: Subject) -> Artifact:
    """What one more fit leaves, uninterrupted; made once."""
    kept = subject.later_fits
    if FRESH not in kept:
        made, _ = _make(subject, FRESH)
        if made is None:
            raise BrokenPromiseError("fit returned an artifact the first time, and None the second")
        kept[FRESH] = made
    found: Artifact = kept[FRESH]
    return found


def _differing(one: Artifact, other: Artifact) -> list[str]:
    """Names of the files that two artifacts do not have alike."""
    found = []
    for folder in (one.folder, other.folder):
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        files.pop(PROVENANCE, None)
        found.append(files)
    names = sorted({*found[0], *found[1]})
    return [name for name in names if found[0].get(name) != found[1].get(name)][:4]
