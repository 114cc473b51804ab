"""What lies in the cache of fits, as data: fits, the answers that they share, copies of adapters.

Nothing here fits or removes anything, and nothing found on disk is trusted: a folder that is not what it should be is
listed with what is wrong about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from personalitybench.artifacts.sizes import measure
from personalitybench.artifacts.store import FIT, FITTED, fit_label
from personalitybench.costs import FitCost
from personalitybench.errors import ConfigurationError, PersonalityBenchError, unknown_name
from personalitybench.files import cache_folder, content_hash, is_locked, read_json
from personalitybench.methods import Artifact, InductionMethod, methods
from personalitybench.methods.identification_settings import answers_identity
from personalitybench.temporaries import find_abandoned
from personalitybench.titles import COMBINED

REMOVED = ".removed-"
"""How the name of a folder begins that is being deleted; one that stays was left by a kill."""

State = Literal["complete", "interrupted", "damaged"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")  # what else was written counts in the hash


class _Model(_Part):
    name: str
    revision: str
    engine: str
    args: dict[str, Any]


class _Named(_Part):
    name: str
    sha256: str


class _Data(_Part):
    source: str
    revision: str


class _Method(_Part):
    name: str
    version: str
    settings: dict[str, Any]


class About(_Part):
    """What fits and answers depend on alike.

    Attributes:
        model: Name and revision of the weights, the engine, and how they are loaded.
        data: Questions and descriptions.
        wording: Name and hash of the templates.
        seed: Of everything that is drawn.
    """

    model: _Model
    data: _Data
    wording: _Named
    seed: int


class FitAbout(About):
    """What a fit depends on: ``fit.json``."""

    method: _Method


class AnswersAbout(About):
    """What identification answers depend on: ``identity.json``."""

    settings: dict[str, Any]


class Kept(BaseModel):
    """A folder of the cache that can be made again.

    Attributes:
        name: Of the folder.
        folder: Where it is.
        problem: What is wrong with it; empty where nothing is.
        in_use: Whether a process works in it.
        bytes: Size of all its files.
        used: When it was last used, as far as its files say; when it was last written, where nothing keeps more.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    problem: str = ""
    in_use: bool
    bytes: int
    used: datetime

    @property
    def about(self) -> About | None:
        """What it depends on, where that can be read."""
        return None


class KeptFit(Kept):
    """A fit.

    Attributes:
        state: ``damaged``: what is there is not what a fit leaves.
        identity: What it depends on; None where that cannot be read.
        changed: Settings that differ from the method's defaults; all of them where the method is not there to ask.
        note: What to know besides: the method is not there, or asks for another fit by now.
        sha256: Hash of the artifact, once it is complete.
        cost: What it took, where that was written down.
    """

    state: State
    identity: FitAbout | None = None
    changed: dict[str, Any] = {}
    note: str = ""
    sha256: str | None = None
    cost: FitCost | None = None

    @property
    def about(self) -> FitAbout | None:
        """See :attr:`Kept.about`."""
        return self.identity


class KeptAnswers(Kept):
    """Identification answers and their statistics, which fits share.

    Attributes:
        identity: What they depend on; None where that cannot be read.
        runs: Runs (a target, or a trait's questions asked plainly) whose answers are complete.
        fits: Names of the fits, complete or not, that are made of them.
    """

    identity: AnswersAbout | None = None
    runs: int
    fits: list[str]

    @property
    def about(self) -> AnswersAbout | None:
        """See :attr:`Kept.about`."""
        return self.identity


class KeptAdapter(Kept):
    """An adapter at another scale: a copy that a backend makes from an artifact when it needs it."""


class KeptStore(BaseModel):
    """All of it.

    Attributes:
        folder: The cache.
        fits: Fits, newest use first.
        answers: What fits share.
        adapters: Copies.
        leftovers: What killed processes left anywhere in the cache: folders that a prune did not delete, temporary
            files and folders whose writer is gone.
        bytes: Size of all of them; files that several share count once.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    fits: list[KeptFit]
    answers: list[KeptAnswers]
    adapters: list[KeptAdapter]
    leftovers: list[Path]
    bytes: int

    @property
    def items(self) -> list[Kept]:
        """Fits, answers, copies."""
        return [*self.fits, *self.answers, *self.adapters]

    def find(self, name: str) -> Kept:
        """What is called so, or is the only one whose name, or whose hash at the end of it, begins so.

        Args:
            name: May say the part of the cache, too: ``fits/npti-...``.

        Raises:
            ConfigurationError: Nothing is called so, or several.
        """
        found = [item for item in self.items if name in {item.name, _long(item)}] or [
            item
            for item in self.items
            if name and any(text.startswith(name) for text in (item.name, _long(item), _hash(item)))
        ]
        if not found:
            raise unknown_name("artifact", name, [item.name for item in self.items])
        if len(found) > 1:
            names = ", ".join(map(_long, found))
            raise ConfigurationError(f"{name!r} is, or begins, the names of several: {names}: write more of one")
        return found[0]


def read_store(*, verify: bool = False) -> KeptStore:
    """Look at all that the cache keeps of fits.

    Args:
        verify: Hash every artifact; those that are not what was fitted are ``damaged``.
    """
    fits = [read_fit(folder, verify=verify) for folder in _folders("fits")]
    answers = [_answers(folder, fits) for folder in _folders("identifications")]
    adapters = [KeptAdapter(**_common(folder)) for folder in _folders("adapters")]
    leftovers = [
        path for name in ("fits", "identifications", "adapters") for path in (cache_folder() / name).glob(f"{REMOVED}*")
    ]
    leftovers += [path for path in find_abandoned(cache_folder(), recursive=True) if path not in leftovers]
    return KeptStore(
        folder=cache_folder(),
        fits=sorted(fits, key=lambda fit: fit.used, reverse=True),
        answers=sorted(answers, key=lambda one: one.used, reverse=True),
        adapters=adapters,
        leftovers=leftovers,
        bytes=measure(*(item.folder for item in (*fits, *answers, *adapters)), *leftovers)[0],
    )


def read_fit(folder: Path, *, verify: bool = False) -> KeptFit:
    """Look at the folder of a fit.

    Args:
        folder: In the store.
        verify: Hash the artifact.
    """
    common = _common(folder)
    try:
        raw = read_json(folder / FIT)
        identity = FitAbout.model_validate(raw)
    except (PersonalityBenchError, ValidationError):
        return KeptFit(**common, state="damaged", problem=f"it has no readable {FIT}: no fit of ours, or damaged")
    changed, note = changed_settings(identity.method.name, identity.method.version, identity.method.settings)
    seen: dict[str, Any] = {**common, "identity": identity, "changed": changed, "note": note}
    if fit_label(raw) != folder.name:
        return KeptFit(**seen, state="damaged", problem=f"its name does not follow from its {FIT}: renamed, or altered")
    if not (folder / FITTED).is_file():
        return KeptFit(**seen, state="interrupted")
    left = _left(folder, verify=verify)
    return KeptFit(**seen, **left, state="damaged" if left.get("problem") else "complete")


def _left(folder: Path, *, verify: bool) -> dict[str, Any]:
    """What a fit that says that it is complete left, as far as that can be read, and what is wrong with it."""
    left: dict[str, Any] = {}
    try:
        left["sha256"] = str(read_json(folder / FITTED)["sha256"])
        artifact = Artifact(folder / "artifact", left["sha256"])
        if not any(artifact.folder.glob("*")):
            left["problem"] = "its artifact is missing"
            return left
        left["cost"] = artifact.cost
        if verify and Artifact.open(artifact.folder) != artifact:
            left["problem"] = "its artifact was truncated or altered since it was fitted"
    except (PersonalityBenchError, OSError) as error:
        left["problem"] = " ".join(str(error).split())
    except (KeyError, TypeError, AttributeError):
        left["problem"] = f"{FITTED} or its provenance is not what a fit writes"
    return left


def changed_settings(method: str, version: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Which settings of a fit one has to set by name to get it, and what to know where that gives another fit.

    Args:
        method: Registered name.
        version: Of the method, when it was fitted.
        settings: All that the fit depends on.

    Returns:
        The settings, all of them where the method is not there; and a note, empty in general.
    """
    try:
        kind = methods.get(method)
        default, installed = kind.Settings().for_fit(), kind.version
    except Exception as error:  # noqa: BLE001 (a method of somebody else, whatever it raises: the fit is still listed)
        missing = isinstance(error, ConfigurationError)
        about = (
            f"method {method!r} is not installed here" if missing else f"method {method!r} cannot be asked ({error})"
        )
        return dict(settings), about
    if method == COMBINED:
        return {"parts": [_changed_part(part) for part in settings.get("parts", [])]}, ""
    given = {name: value for name, value in settings.items() if default.get(name) != value}
    if installed != version or _chosen(kind, given) not in (settings, None):
        return (
            given,
            f"method {method!r} has changed since (version {installed} here): it does not use this, it fits anew",
        )
    for name in list(given):  # what another one sets, as a preset does, need not be said
        fewer = {key: value for key, value in given.items() if key != name}
        if _chosen(kind, fewer) == settings:
            given = fewer
    return given, ""


def _changed_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a combination, with the settings that are not its method's defaults."""
    try:
        changed, _ = changed_settings(part["name"], methods.get(part["name"]).version, part["settings"])
    except (ConfigurationError, KeyError):  # a method that is not installed here, or a file that was written by hand
        return dict(part)
    return {"name": part["name"], **({"settings": changed} if changed else {})}


def _chosen(kind: type[InductionMethod], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that a fit would depend on; None where nobody can tell, as where a hash stands for a file."""
    try:
        return kind.Settings.model_validate(given).for_fit()
    except Exception:  # noqa: BLE001 (settings of somebody else, whatever they raise)
        return None


def _answers(folder: Path, fits: Iterable[KeptFit]) -> KeptAnswers:
    identity, problem = None, ""
    try:
        identity = AnswersAbout.model_validate(read_json(folder / "identity.json"))
    except (PersonalityBenchError, ValidationError):
        problem = "it has no readable identity.json: no answers of ours, or damaged"
    users = sorted(fit.name for fit in fits if fit.identity and _answers_name(fit.identity) == folder.name)
    runs = sum(1 for _ in folder.glob("*/answers.json"))
    return KeptAnswers(**_common(folder), problem=problem, identity=identity, runs=runs, fits=users)


def _answers_name(fit: FitAbout) -> str | None:
    """The folder of the answers that a fit is made of; None where its method asks nothing."""
    about = fit.model_dump(mode="json", include=set(About.model_fields))
    try:
        return content_hash(answers_identity(about, fit.method.settings))[:12]
    except KeyError:
        return None


def _common(folder: Path) -> dict[str, Any]:
    size, newest = measure(folder)
    used = datetime.fromtimestamp(newest, UTC).replace(microsecond=0)
    return {"name": folder.name, "folder": folder, "in_use": is_locked(folder), "bytes": size, "used": used}


def _folders(kind: str) -> list[Path]:
    """Folders of a part of the cache; a dot marks what is none of them."""
    place = cache_folder() / kind
    found = place.iterdir() if place.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and not path.name.startswith("."))


def _long(item: Kept) -> str:
    return f"{item.folder.parent.name}/{item.name}"


def _hash(item: Kept) -> str:
    return item.name.rpartition("-")[2]
