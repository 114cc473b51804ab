"""Adapters and interventions that somebody sent, mutated, with hashes that fit: read, or refused with one line."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from personalitybench.activations.interventions import MANIFEST_FILE, TENSORS_FILE, Intervention
from personalitybench.backends.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from personalitybench.files import content_hash
from tests.made_up import make_set, random_set
from tests.mutations import assert_accepts_or_refuses, damage_bytes, json_mutants, mutant_count

COUNT = mutant_count(150)
ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {},
    "layers_to_transform": [0, 1],
    "layers_pattern": "layers",
    "exclude_modules": None,
    "bias": "none",
    "use_rslora": False,
    "base_model_name_or_path": "tiny",
}


def hostile_patterns() -> Iterator[bytes]:
    """Configurations whose patterns a backtracking search would not end on."""
    for pattern in (
        "(.*)*(.*)*(.*)*x$",
        "(a|a)*b",
        "(",
        "[",
        "x{1,99999}",
        "(?P<a>.)(?P=a)*" * 30,
        "\\" * 9,
        "a" * 9999,
    ):
        for key in ("target_modules", "exclude_modules", "layers_pattern"):
            yield json.dumps({**ADAPTER, key: pattern}).encode()
        for key in ("rank_pattern", "alpha_pattern"):
            yield json.dumps({**ADAPTER, key: {pattern: 2}}).encode()


def within_seconds(read: Callable[[], object], mutant: bytes) -> bool:
    before = time.process_time()
    accepted = assert_accepts_or_refuses(read, mutant)
    assert time.process_time() - before < 5, mutant[:300]
    return accepted


def test_configurations_of_adapters(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(save({"a": np.zeros((2, 2), np.float32)}))
    path = tmp_path / CONFIG_FILE
    accepted = 0
    for mutant in (*json_mutants(ADAPTER, COUNT, seed=1), *hostile_patterns()):
        path.write_bytes(mutant)
        accepted += within_seconds(lambda: read_adapter(tmp_path), mutant)
    assert 0 < accepted < COUNT


@pytest.fixture
def intervention(tmp_path: Path) -> Path:
    Intervention.from_neurons(random_set(1, 8, (3, 8)), make_set()).save(tmp_path)
    assert Intervention.load(tmp_path)
    return tmp_path


def write_manifest(folder: Path, manifest: object) -> None:
    """Write a manifest; its own hash and that of the tensors fit where it can hold them."""
    if isinstance(manifest, dict):
        manifest.pop("sha256", None)
        manifest = {**manifest, "sha256": content_hash(manifest)}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_manifests_of_interventions(intervention: Path) -> None:
    whole = json.loads((intervention / MANIFEST_FILE).read_text())
    accepted = 0
    for mutant in json_mutants(whole, COUNT, seed=2):
        try:
            write_manifest(intervention, json.loads(mutant))
        except (ValueError, RecursionError, UnicodeEncodeError):  # no JSON, or none that a hash can be made of
            (intervention / MANIFEST_FILE).write_bytes(mutant)
        accepted += within_seconds(lambda: Intervention.load(intervention, (3, 8)), mutant)
    assert 0 < accepted < COUNT


def test_tensors_of_interventions(intervention: Path) -> None:
    manifest = json.loads((intervention / MANIFEST_FILE).read_text())
    whole = (intervention / TENSORS_FILE).read_bytes()
    chance = random.Random(3)  # noqa: S311 (mutations, no secrets)
    accepted = 0
    for _ in range(COUNT):
        mutant = damage_bytes(whole, chance)
        (intervention / TENSORS_FILE).write_bytes(mutant)
        write_manifest(intervention, manifest | {"tensors_sha256": hashlib.sha256(mutant).hexdigest()})
        accepted += within_seconds(lambda: Intervention.load(intervention, (3, 8)), mutant)
    assert accepted < COUNT
