"""Neuron sets of one model, found beneath a folder: where a report or an export begins.

Sets are known by their manifests, wherever a fit or an import has put them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personalitybench.activations.neurons import MANIFEST_FILE, NEURONS_FILE, NeuronManifest, NeuronSet
from personalitybench.errors import ConfigurationError, DataError, MissingDependencyError
from personalitybench.files import read_json
from personalitybench.traits import TARGETS, Target

_SET_FORMAT = "personalitybench-neurons/"


@dataclass(frozen=True)
class FoundSet:
    """A neuron set and where it was.

    Attributes:
        target: Whose neurons these are.
        folder: Folder of the set.
        neurons: The set.
        about: Where it comes from, as its maker said.
    """

    target: Target
    folder: Path
    neurons: NeuronSet
    about: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers of the model and neurons of a layer."""
        return self.neurons.shape

    @property
    def model(self) -> str | None:
        """What the model is called, where the set says it."""
        return _text(self.about.get("model"))

    @property
    def revision(self) -> str | None:
        """Which weights these are, where the set says it."""
        return _text(self.about.get("revision"))


@dataclass(frozen=True)
class Collection:
    """Neuron sets of one model, at most one for each target.

    Attributes:
        sets: Sets by target, in the order of :data:`~personalitybench.traits.TARGETS`.
        model: What the model is called, or None where nothing says so.
        revision: Which weights these are, or None.
    """

    sets: Mapping[Target, FoundSet]
    model: str | None = None
    revision: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Layers of the model and neurons of a layer."""
        return next(iter(self.sets.values())).shape


def find_sets(root: Path) -> Collection:
    """Find the neuron sets beneath a folder (or in it): those of a fit, or imported ones.

    Raises:
        MissingDependencyError: safetensors is not installed.
        DataError: There is no such folder, no set in it, or a set does not say its target.
        StorageError: A set is damaged or unfinished.
        ConfigurationError: The sets are of two models, or two are of one target.
    """
    require_safetensors()
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist: name the folder of a fit or of imported neurons")
    found = [load_set(folder) for folder in _folders(root)]
    if not found:
        raise DataError(
            f"{root} holds no neuron set (a {MANIFEST_FILE} beside its neurons): name the folder of a finished fit, "
            "or import neurons with 'personalitybench neurons import'"
        )
    model, revision = check_one_model(found)
    return Collection({target: only for target in TARGETS if (only := _only(found, target))}, model, revision)


def check_one_model(sets: Sequence[FoundSet]) -> tuple[str | None, str | None]:
    """Refuse sets of two models: of two shapes, or where two say different names or revisions.

    Returns:
        Name and revision of the model, as far as any set states them.

    Raises:
        ConfigurationError: Names both sets and both models.
    """
    first = sets[0]
    for one in sets:
        if one.neurons.shape != first.neurons.shape:
            shapes = [f"{layers} layers x {neurons} neurons" for layers, neurons in (first.shape, one.shape)]
            raise _two_models(first, shapes[0], one, shapes[1])
    stated = [one for one in sets if one.model is not None]
    for one in stated:
        if (one.model, one.revision) != (stated[0].model, stated[0].revision):
            raise _two_models(
                stated[0], f"{stated[0].model} @ {stated[0].revision}", one, f"{one.model} @ {one.revision}"
            )
    return (stated[0].model, stated[0].revision) if stated else (None, None)


def load_set(folder: Path) -> FoundSet:
    """Read a saved set.

    Raises:
        DataError: It does not say its target.
        StorageError: It is damaged or unfinished.
    """
    about = NeuronManifest.read(folder).about
    try:
        target = Target.parse(str(about["target"]))
    except (KeyError, ConfigurationError) as error:
        raise DataError(
            f"{folder / MANIFEST_FILE} does not say whose neurons these are: write a target such as "
            "'extraversion:high' under 'about'"
        ) from error
    return FoundSet(target, folder, NeuronSet.load(folder), about)


def require_safetensors() -> None:
    """Say what to install where neuron sets cannot be read.

    Raises:
        MissingDependencyError: safetensors is not installed.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise MissingDependencyError("neuron sets need safetensors: pip install 'personalitybench[hf]'")


def _folders(root: Path) -> list[Path]:
    """Folders of sets. One without its manifest is unfinished: reading it says so."""
    folders = {path.parent for path in root.rglob(NEURONS_FILE)}
    for path in root.rglob(MANIFEST_FILE):
        value = read_json(path)
        if isinstance(value, dict) and str(value.get("format", "")).startswith(_SET_FORMAT):
            folders.add(path.parent)
    return sorted(folders)


def _two_models(first: FoundSet, one: str, second: FoundSet, other: str) -> ConfigurationError:
    return ConfigurationError(
        f"neurons of two models: {first.folder} is for {one}, {second.folder} for {other}: keep the sets of each model "
        "in a folder of their own, and name that"
    )


def _only(found: Sequence[FoundSet], target: Target) -> FoundSet | None:
    same = [one for one in found if one.target == target]
    if len(same) > 1:
        raise ConfigurationError(
            f"{target} has two neuron sets: {same[0].folder} and {same[1].folder}: name the folder of one fit"
        )
    return same[0] if same else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
