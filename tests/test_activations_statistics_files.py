"""Statistics on disk: what was saved is loaded, what is damaged or of another run is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from personalitybench.activations import statistics_files
from personalitybench.activations.statistics import Bins, GateStatistics
from personalitybench.errors import PersonalityBenchError, StorageError
from personalitybench.files import content_hash
from tests.test_activations_statistics import NAMES, PRESETS, count, sample


@pytest.mark.parametrize("bins", PRESETS, ids=NAMES)
def test_what_was_saved_is_loaded(tmp_path: Path, bins: Bins) -> None:
    built = count(sample(), np.arange(60) % 4, bins=bins)
    sha256 = built.save(tmp_path / "a")
    loaded = GateStatistics.load(tmp_path / "a")
    assert loaded.manifest == built.manifest
    assert (loaded.active == built.active).all()
    assert (loaded.histogram == built.histogram).all()
    assert loaded.save(tmp_path / "b") == sha256
    assert count(sample(seed=9), np.arange(60) % 4, bins=bins).save(tmp_path / "a") != sha256
    assert len(list((tmp_path / "a").iterdir())) == 2
    stored = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert stored["questions"] == stored["tokens"] == [15] * 4
    assert stored["target"] == "extraversion:high"
    assert stored["format_version"] == 1


def change_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def counts_file(folder: Path) -> Path:
    (path,) = folder.glob("gate-*.safetensors")
    return path


def flip_a_byte(folder: Path) -> None:
    data = bytearray(counts_file(folder).read_bytes())
    data[-1] ^= 1
    counts_file(folder).write_bytes(data)


def forge_counts(active: Any = None) -> Callable[[Path], None]:
    """Put other counts in, with all hashes right: only what is possible tells them apart."""

    def forge(folder: Path) -> None:
        manifest, own, histogram = statistics_files.load_statistics(folder)
        statistics_files.save_statistics(folder, manifest, active(own) if active else own, histogram)

    return forge


def forge_nan(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"stop": 32.0', '"stop": NaN'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no finished statistics"),
        (lambda folder: counts_file(folder).unlink(), "No such file"),
        (lambda folder: os.truncate(counts_file(folder), 300), "truncated or altered"),
        (lambda folder: os.truncate(folder / "manifest.json", 100), "is not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not a JSON object"),
        (flip_a_byte, "truncated or altered"),
        (forge_nan, "NaN is no number of JSON"),
        (change_manifest(revision="other"), "was altered"),
        (change_manifest(tokens=[float("nan")] * 4), "NaN is no number of JSON"),
        (change_manifest(tokens=[15] * 3), "questions of 4 shards and tokens of 3"),
        (change_manifest(tokens=[-1] * 4), "greater than or equal to 0"),
        (change_manifest(seed=1), "unknown key 'seed': did you mean 'seeds'"),
        (change_manifest(target="extraversion:up"), "extraversion:up"),
        (change_manifest(counts_sha256="../../x"), "pattern"),
        (change_manifest(format_version=2), "format version 2, this program reads 1"),
        (forge_counts(lambda active: active[:, :1]), "manifest says int32"),
        (forge_counts(lambda active: active.astype(np.float32)), "active is float32"),
        (forge_counts(lambda active: active - 60), "negative count"),
        (forge_counts(lambda active: active + 60), "active in more tokens than there were"),
        (forge_counts(np.zeros_like), "another number of activations"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    count(sample(), np.arange(60) % 4).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(PersonalityBenchError, match=message) as error:
        GateStatistics.load(tmp_path)
    assert str(tmp_path) in str(error.value) or "bins from" in str(error.value) or "target" in str(error.value)
    assert "\n" not in str(error.value)


def test_counts_of_another_run_do_not_pass_under_a_manifest(tmp_path: Path) -> None:
    count(sample(), np.arange(60) % 4).save(tmp_path / "a")
    count(sample(seed=5), np.arange(60) % 4).save(tmp_path / "b")
    counts_file(tmp_path / "a").write_bytes(counts_file(tmp_path / "b").read_bytes())
    with pytest.raises(StorageError, match="truncated or altered"):
        GateStatistics.load(tmp_path / "a")


@pytest.mark.parametrize("stage", ["save_file", "sha256_file", "write_json"])
def test_a_save_that_breaks_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    before = count(sample(), np.arange(60) % 4)
    sha256 = before.save(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device") if stage != "write_json" else StorageError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(statistics_files, stage, full)
        with pytest.raises(StorageError, match="No space left"):
            count(sample(seed=9), np.arange(60) % 4).save(tmp_path)
    assert content_hash_of(tmp_path) == sha256
    assert (GateStatistics.load(tmp_path).active == before.active).all()
    count(sample(seed=9), np.arange(60) % 4).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def content_hash_of(folder: Path) -> str:
    stored = json.loads((folder / "manifest.json").read_text())
    stated = stored.pop("sha256")
    assert content_hash(stored) == stated
    return str(stated)
