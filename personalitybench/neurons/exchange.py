"""The paper's neuron files in and out: published neurons to steer with, and what was found here for others.

An import writes what a fit would::

    DIR/<trait>-<pole>/            the intervention toward a target, where both poles of its trait are there
    DIR/neurons/<trait>-<pole>/    the neurons of each target
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from personalitybench.activations.neurons import MANIFEST_FILE, NeuronSet
from personalitybench.activations.official_files import (
    official_file_name,
    read_official_file,
    target_of_file,
    write_official_file,
)
from personalitybench.errors import ConfigurationError, ModelError
from personalitybench.files import sha256_file, write_json
from personalitybench.methods.npti import TargetRecord, imported_manifest, intervention_folder
from personalitybench.model_identity import ModelIdentity
from personalitybench.models import resolve_model
from personalitybench.neurons.collection import Collection, FoundSet, check_one_model, load_set, require_safetensors
from personalitybench.traits import TARGETS, Target
from personalitybench.versions import import_failure

SETS = "neurons"


@dataclass(frozen=True)
class Imported:
    """What an import left in its folder, that of earlier imports included.

    Attributes:
        read: How many neurons each target that was imported now has.
        ready: The targets that can be steered to.
        waiting: Targets whose neurons are there without those of the opposite pole.
    """

    read: Mapping[Target, int]
    ready: tuple[Target, ...]
    waiting: tuple[Target, ...]


def export_official(collection: Collection, folder: Path) -> list[Path]:
    """Write the sets as the paper's ``*_dict.json``; returns the paths.

    Raises:
        StorageError: A file cannot be written.
    """
    paths = []
    for target, found in collection.sets.items():
        path = folder / official_file_name(target)
        write_official_file(path, found.neurons)
        paths.append(path)
    return paths


def import_official(
    paths: Sequence[Path], folder: Path, shape: tuple[int, int], model: ModelIdentity | None = None
) -> Imported:
    """Read the paper's files into a folder that ``npti`` steers with.

    Files may come one by one: an import adds to what is in the folder, and an intervention is made as soon as both
    poles of a trait are there, because steering toward one also holds back the neurons of the other.

    Args:
        paths: Files, named as the paper names them: the name tells the target.
        folder: The artifact, created if it is missing.
        shape: Layers of the model and neurons of a layer, which the files do not tell.
        model: Which model the neurons are of, where it is known.

    Raises:
        DataError: A file is missing, is no such file, has an unknown name or does not fit the shape.
        ConfigurationError: Two files of one target, or the folder holds neurons of another model.
        StorageError: The folder is not writable, or a set in it is damaged.
    """
    require_safetensors()
    from personalitybench.activations.interventions import Intervention  # noqa: PLC0415 (needs safetensors)

    named: dict[Target, Path] = {}
    for path in paths:
        target = target_of_file(path)
        if target in named:
            raise ConfigurationError(f"two files of {target}: {named[target]} and {path}: name one")
        named[target] = path
    read = {target: _read(target, path, folder, shape, model) for target, path in named.items()}
    others = {target: intervention_folder(folder / SETS, target) for target in TARGETS if target not in read}
    sets = read | {target: load_set(one) for target, one in others.items() if (one / MANIFEST_FILE).is_file()}
    stated = check_one_model(list(sets.values()))
    for one in read.values():
        one.neurons.save(one.folder, about=one.about)
    ready = [target for target in TARGETS if target in sets and target.opposite in sets]
    targets: dict[str, TargetRecord] = {}
    for target in ready:
        own, opposite = sets[target].neurons, sets[target.opposite].neurons
        Intervention.from_neurons(own, opposite).save(
            intervention_folder(folder, target),
            about={"target": str(target), "neurons": {"own": own.content_hash, "opposite": opposite.content_hash}},
        )
        targets[str(target)] = TargetRecord(neurons=len(own), clamped=len(opposite), median_error_of_delta=None)
    about = {} if stated == (None, None) else dict(zip(("name", "revision"), stated, strict=True))
    made = {one.about["file"]: one.about["file_sha256"] for one in sets.values() if "file" in one.about}
    manifest = imported_manifest(about, shape, targets, made)
    write_json(manifest.path(folder), manifest.model_dump(mode="json"))
    waiting = tuple(target for target in TARGETS if target in sets and target not in ready)
    return Imported({target: len(one.neurons) for target, one in read.items()}, tuple(ready), waiting)


def shape_of_model(name: str, revision: str | None = None) -> tuple[ModelIdentity, tuple[int, int]]:
    """Tell which model a name means, and its layers and the neurons of each, without loading its weights.

    Raises:
        ModelError: There is no such model, or transformers cannot make it.
        NeedsNotMetError: It has no gated MLP.
        MissingDependencyError: transformers is not installed.
    """
    try:
        import torch  # noqa: PLC0415 (heavy, and optional)
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

        from personalitybench.activations.layouts import find_gates  # noqa: PLC0415
    except ImportError as error:
        raise import_failure(error, "--model (--layers and --neurons do without)", "hf") from error
    resolved = resolve_model(name, revision)
    local = Path(resolved.location).is_dir()
    try:
        config = AutoConfig.from_pretrained(
            resolved.location, trust_remote_code=False, **({} if local else {"revision": resolved.identity.revision})
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"model {name}: its configuration cannot be read ({reason}): give --layers and --neurons instead"
        ) from error
    gates = find_gates(model)
    return resolved.identity, (gates.layers, gates.neurons)


def _read(target: Target, path: Path, folder: Path, shape: tuple[int, int], model: ModelIdentity | None) -> FoundSet:
    neurons: NeuronSet = read_official_file(path, shape)
    about = {"target": str(target), "file": path.name, "file_sha256": sha256_file(path)}
    if model is not None:
        about |= {"model": model.name, "revision": model.revision}
    return FoundSet(target, intervention_folder(folder / SETS, target), neurons, about)
