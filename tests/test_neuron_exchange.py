"""The paper's neuron files in and out: what comes back, what can be steered with, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("safetensors")

from personalitybench.activations.interventions import Intervention
from personalitybench.activations.neurons import NeuronManifest, NeuronSet
from personalitybench.activations.official_files import (
    OFFICIAL_SHAPE,
    official_file_name,
    read_official_file,
    write_official_file,
)
from personalitybench.errors import ConfigurationError, DataError
from personalitybench.files import sha256_file
from personalitybench.methods import Artifact, InductionMethod, MethodContext, create_method
from personalitybench.model_identity import ModelIdentity
from personalitybench.neurons.collection import find_sets
from personalitybench.neurons.exchange import export_official, import_official
from personalitybench.prompts import load_wording
from personalitybench.questions import Question, open_source
from personalitybench.traits import TARGETS, Target
from tests.conftest import SHARED
from tests.test_activations_neurons import random_set
from tests.test_neuron_report import command, refusal, save

SHAPE = (3, 50)
OPEN, CLOSED = Target.parse("openness:high"), Target.parse("openness:low")
SIZE = ("--layers", SHAPE[0], "--neurons", SHAPE[1])


def write(folder: Path, target: Target, seed: int, shape: tuple[int, int] = SHAPE) -> Path:
    path = folder / official_file_name(target)
    write_official_file(path, random_set(seed, shape=shape))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[Target, Path]:
    """A made-up file of each target."""
    return {target: write(tmp_path / "files", target, seed) for seed, target in enumerate(TARGETS)}


def test_import_and_export_give_the_same_files(files: dict[Target, Path], tmp_path: Path) -> None:
    done = command("import", *files.values(), "--output", tmp_path / "in", *SIZE)
    assert done.exit_code == 0
    assert "openness:high: 40 neurons" in done.stdout
    done = command("export", tmp_path / "in", "--output", tmp_path / "out")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == [path.name for path in files.values()]
    for path, original in zip(paths, files.values(), strict=True):
        assert path.read_bytes() == original.read_bytes()


def test_the_released_file_comes_back_with_the_same_values(tmp_path: Path) -> None:
    path = SHARED / "neurons" / "Conscientiousness_dict.json"
    if not path.is_file():
        pytest.skip(f"the released neuron file is not at {path}: it has no licence and is not in the repository")
    import_official([path], tmp_path / "in", OFFICIAL_SHAPE)
    (copy,) = export_official(find_sets(tmp_path / "in"), tmp_path / "out")
    ours, theirs = json.loads(copy.read_text()), json.loads(path.read_text())
    assert list(ours) == list(theirs)
    # Not byte for byte: the released files order neurons of equal δ at random.
    assert all(sorted(ours[layer]) == sorted(rows) for layer, rows in theirs.items())
    assert read_official_file(copy, OFFICIAL_SHAPE) == read_official_file(path, OFFICIAL_SHAPE)


def test_a_fit_exported_and_imported_steers_alike(tmp_path: Path) -> None:
    sets = {OPEN: random_set(1), CLOSED: random_set(2)}
    for target, neurons in sets.items():
        save(tmp_path / "fit", str(target), neurons)
    paths = export_official(find_sets(tmp_path / "fit"), tmp_path / "files")
    import_official(paths, tmp_path / "in", SHAPE)
    for target, neurons in sets.items():
        found = Intervention.load(tmp_path / "in" / f"openness-{target.pole}", SHAPE)
        assert found.sha256 == Intervention.from_neurons(neurons, sets[target.opposite]).sha256
        assert NeuronSet.load(tmp_path / "in" / "neurons" / f"openness-{target.pole}") == neurons


def test_where_the_neurons_come_from_is_on_record(files: dict[Target, Path], tmp_path: Path) -> None:
    import_official([files[OPEN]], tmp_path / "in", SHAPE, ModelIdentity("maker/model", "abc"))
    about = NeuronManifest.read(tmp_path / "in" / "neurons" / "openness-high").about
    assert about == {
        "target": "openness:high",
        "file": "Openness_dict.json",
        "file_sha256": sha256_file(files[OPEN]),
        "model": "maker/model",
        "revision": "abc",
    }


def test_poles_may_come_one_by_one(files: dict[Target, Path], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    done = command("import", files[OPEN], "--output", folder, *SIZE)
    assert "openness:high: no intervention yet, it needs the neurons of openness:low, too" in done.stdout
    assert "Ready" not in done.stdout
    assert not (folder / "openness-high").exists()
    done = command("import", files[CLOSED], "--output", folder, *SIZE)
    assert "no intervention yet" not in done.stdout
    assert "Ready: openness:high, openness:low." in done.stdout
    imported = import_official(list(files.values()), tmp_path / "at once", SHAPE)
    assert imported.ready == TARGETS
    for pole in ("openness-high", "openness-low"):
        assert Intervention.load(folder / pole).sha256 == Intervention.load(tmp_path / "at once" / pole).sha256


def test_a_new_file_replaces_the_old_in_both_interventions(files: dict[Target, Path], tmp_path: Path) -> None:
    import_official([files[OPEN], files[CLOSED]], tmp_path / "in", SHAPE)
    before = [Intervention.load(tmp_path / "in" / f"openness-{pole}").sha256 for pole in ("high", "low")]
    import_official([write(tmp_path / "new", OPEN, 77)], tmp_path / "in", SHAPE)
    after = [Intervention.load(tmp_path / "in" / f"openness-{pole}").sha256 for pole in ("high", "low")]
    assert all(old != new for old, new in zip(before, after, strict=True))


def method_of(artifact: str | Path) -> InductionMethod:
    context = MethodContext(load_wording("project"), open_source("sample"), artifact=Artifact.open(Path(artifact)))
    return create_method("npti", {}, context)


def question() -> Question:
    return Question.from_row(open_source("sample").questions("evaluate", "openness")[0])


def test_the_method_finds_what_was_imported(files: dict[Target, Path], tmp_path: Path) -> None:
    done = command("import", files[OPEN], files[CLOSED], "--output", tmp_path / "in", *SIZE)
    metadata = json.loads(done.stdout.split("--metadata '")[1].split("'\n")[0])
    assert metadata == {"method": "npti", "strength": 1.4, "artifact": str(tmp_path / "in")}
    for target in (OPEN, CLOSED):
        sent = method_of(metadata["artifact"]).induce(target, metadata["strength"], question()).extra_args
        assert (sent["intervention"], sent["strength"]) == (str(tmp_path / "in" / f"openness-{target.pole}"), 1.4)
        assert len(Intervention.load(Path(sent["intervention"]), SHAPE)) == 80, "both poles' neurons"


def test_a_target_that_was_not_imported(files: dict[Target, Path], tmp_path: Path) -> None:
    import_official([files[OPEN], files[CLOSED], files[TARGETS[2]]], tmp_path / "in", SHAPE)
    method = method_of(tmp_path / "in")
    for target in TARGETS[2:4]:  # one whose own neurons are there without the opposite ones, one without anything
        with pytest.raises(
            ConfigurationError, match=rf"no intervention toward {target} \(it has openness:high, openness:low\): fit"
        ):
            method.induce(target, 1.0, question())


# Which model


@pytest.mark.model
def test_the_shape_of_a_model(files: dict[Target, Path], tiny_model: Path, tmp_path: Path) -> None:
    path = write(tmp_path, OPEN, 0, shape=(2, 64))
    assert command("import", path, "--output", tmp_path / "in", "--model", tiny_model).exit_code == 0
    manifest = NeuronManifest.read(tmp_path / "in" / "neurons" / "openness-high")
    assert manifest.shape == (2, 64)
    assert manifest.about["model"] == "tiny-llama"
    assert manifest.about["revision"].startswith("sha256:")
    error = refusal("import", files[OPEN], "--output", tmp_path / "other", "--model", tiny_model)
    assert "does not fit a model of 2 × 64" in str(error)
    config = tmp_path / "no model"
    config.mkdir()
    (config / "config.json").write_text('{"model_type": "of nobody"}')
    assert "give --layers and --neurons" in str(refusal("import", path, "--output", tmp_path / "x", "--model", config))


@pytest.mark.parametrize(
    "options",
    [(), ("--layers", 3), ("--neurons", 50), ("--model", "demo", *SIZE), ("--model", "demo", "--layers", 3)],
)
def test_a_shape_that_is_not_said(files: dict[Target, Path], tmp_path: Path, options: tuple[object, ...]) -> None:
    error = refusal("import", files[OPEN], "--output", tmp_path / "in", *options)
    assert "either --model, or --layers and --neurons together" in str(error)
    assert not (tmp_path / "in").exists()


# What is refused


def test_a_file_of_an_unknown_name(files: dict[Target, Path], tmp_path: Path) -> None:
    path = files[OPEN].rename(tmp_path / "openness_dict.json")
    error = refusal("import", path, "--output", tmp_path / "in", *SIZE)
    assert isinstance(error, DataError)
    assert "such as Openness_dict.json" in str(error)


def test_two_files_of_one_target(files: dict[Target, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "other", OPEN, 5)
    assert "two files of openness:high" in str(
        refusal("import", files[OPEN], other, "--output", tmp_path / "in", *SIZE)
    )


def test_a_bad_file_among_good_ones_leaves_nothing(files: dict[Target, Path], tmp_path: Path) -> None:
    files[CLOSED].write_text('{"0": [[0, 1, 0.2, 0.3]]}')
    error = refusal("import", files[OPEN], files[CLOSED], "--output", tmp_path / "in", *SIZE)
    assert "Openness_reversed_dict.json, layer '0', row 0" in str(error)
    assert not (tmp_path / "in").exists()


def test_neurons_of_another_model_in_the_folder(files: dict[Target, Path], tmp_path: Path) -> None:
    import_official([files[OPEN]], tmp_path / "in", SHAPE, ModelIdentity("maker/model", "abc"))
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    other = write(tmp_path / "other", CLOSED, 3, shape=(4, 50))
    assert "of two models" in str(refusal("import", other, "--output", tmp_path / "in", "--layers", 4, "--neurons", 50))
    with pytest.raises(ConfigurationError, match=r"of two models: .*maker/other @ abc, .*maker/model @ abc"):
        import_official([files[CLOSED]], tmp_path / "in", SHAPE, ModelIdentity("maker/other", "abc"))
    assert {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()} == before
    import_official([files[CLOSED]], tmp_path / "in", SHAPE)  # of a model that is not named: it may be the same


def test_a_set_with_no_neuron(tmp_path: Path) -> None:
    empty = tmp_path / official_file_name(CLOSED)
    empty.write_text("{}")
    import_official([empty, write(tmp_path, OPEN, 1)], tmp_path / "in", SHAPE)
    assert len(Intervention.load(tmp_path / "in" / "openness-high")) == 40, "nothing to hold back"
    (_, copy) = export_official(find_sets(tmp_path / "in"), tmp_path / "out")
    assert copy.read_text() == "{}"
