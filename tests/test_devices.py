"""The device on which answers were made: described, kept with each session, shown with the versions."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from personalitybench import version_log
from personalitybench.backends.devices import describe_device
from personalitybench.leaderboard.build import build_board
from personalitybench.leaderboard.render import to_html
from personalitybench.version_log import other_devices, record_session, session_devices
from tests.test_leaderboard import cell, ratings

CPU, GPU = "cpu x86_64, float32", "cuda NVIDIA H200, bfloat16"


def test_devices_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    weights = SimpleNamespace(dtype=torch.float32)
    assert describe_device(SimpleNamespace(device=torch.device("cpu"), model=weights)) == (
        f"cpu {platform.machine()}, float32"
    )
    assert describe_device(SimpleNamespace(device=torch.device("mps"), model=weights)) == "mps, float32"
    config = SimpleNamespace(
        device_config=SimpleNamespace(device_type="cuda"), model_config=SimpleNamespace(dtype=torch.bfloat16)
    )
    engine = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert describe_device(SimpleNamespace(model=engine)) == GPU
    assert describe_device(SimpleNamespace(device="cuda:1", model=weights)) == "cuda NVIDIA H200, float32"


@pytest.mark.parametrize("model", [None, SimpleNamespace(model="gpt", device="cpu"), SimpleNamespace(), object()])
def test_a_model_that_computes_elsewhere_has_none(model: Any) -> None:
    assert describe_device(model) == ""


@pytest.mark.model
def test_a_loaded_model_has_one(lm: Any) -> None:
    assert describe_device(lm) == f"cpu {platform.machine()}, float32"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    return lambda versions: monkeypatch.setattr(version_log, "package_versions", lambda: dict(versions))


def test_a_session_on_another_device_is_recorded_and_told(
    tmp_path: Path, installed: Callable[[dict[str, str]], None]
) -> None:
    installed({"torch": "2"})
    first = {"torch": "2"}
    assert record_session(tmp_path, first, device=CPU, first_device=CPU) == ""
    assert session_devices(tmp_path) == []
    assert record_session(tmp_path, first, device=GPU, first_device=CPU) == f"device {GPU} (before: {CPU})"
    assert record_session(tmp_path, first, device=GPU, first_device=CPU) == ""
    installed({"torch": "3"})
    assert record_session(tmp_path, first, device=GPU, first_device=CPU) == "torch 3 (before: 2)"
    assert session_devices(tmp_path) == [GPU, GPU]
    assert other_devices(CPU, [GPU, CPU, "", GPU]) == [GPU]


def test_records_of_earlier_versions_have_no_device(
    tmp_path: Path, installed: Callable[[dict[str, str]], None]
) -> None:
    installed({"torch": "2"})
    assert record_session(tmp_path, {"torch": "2"}, device=CPU) == ""
    assert session_devices(tmp_path) == [CPU]


def test_a_row_shows_the_devices_of_all_its_seeds() -> None:
    cells = [cell("extraversion:high", ratings(4.0, 5.0), seed=seed) for seed in (0, 1)]
    cells = [
        replace(each, provenance=each.provenance.model_copy(update={"device": device}))
        for each, device in zip(cells, (CPU, GPU), strict=True)
    ]
    board = build_board("b", cells)
    (row,) = board.rows
    assert (row.provenance.device, row.provenance.other_devices) == (CPU, [GPU])
    assert f"<dt>device</dt><dd>{CPU}; {GPU}</dd>" in to_html(board)
    assert row.id == build_board("b", [replace(each, provenance=cells[0].provenance) for each in cells]).rows[0].id
