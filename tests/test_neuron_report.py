"""Reports on neuron sets: the figures, what they are shown as, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("safetensors")

from personalitybench.activations.interventions import Intervention
from personalitybench.activations.neurons import NEURONS_FILE, NeuronSet
from personalitybench.activations.official_files import OFFICIAL_SHAPE
from personalitybench.cli import app
from personalitybench.errors import (
    ConfigurationError,
    DataError,
    PersonalityBenchError,
    StorageError,
)
from personalitybench.neurons.collection import find_sets
from personalitybench.neurons.render import to_html, to_markdown
from personalitybench.neurons.report import NeuronReport, make_report
from personalitybench.neurons.tables import bars, report_tables, short
from personalitybench.traits import TARGETS
from tests.conftest import SHARED
from tests.test_activations_neurons import random_set

SHAPE = (3, 8)
ABOUT = {"model": "maker/model", "revision": "abc", "settings": {"questions": 30}}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["neurons", *map(str, arguments)], env={"COLUMNS": "80"})


def refusal(*arguments: object) -> PersonalityBenchError:
    """The error that a command ends with."""
    error = command(*arguments).exception
    assert isinstance(error, PersonalityBenchError)
    assert "\n" not in str(error)
    return error


def save(folder: Path, target: str, neurons: NeuronSet, **about: Any) -> Path:
    place = folder / "deep" / target.replace(":", "-") / "found"
    neurons.save(place, about={"target": target, **ABOUT, **about})
    return place


def neuron_set(*rows: tuple[int, int, float], shape: tuple[int, int] = SHAPE, error: float | None = None) -> NeuronSet:
    """A set of (layer, index, delta)."""
    layer, index, delta = zip(*rows, strict=True) if rows else ((), (), ())
    count = len(rows)
    found = NeuronSet(
        shape, np.array(layer), np.array(index), np.array(delta), np.full(count, 0.5), np.full(count, 0.25)
    )
    return found if error is None else found.with_error(np.full(shape, error))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three targets of a model of 3 x 8 neurons, one of them empty."""
    folder = tmp_path / "fit"
    save(folder, "neuroticism:low", neuron_set((0, 1, 0.15), (2, 7, 0.3)))
    save(folder, "openness:high", neuron_set((0, 1, 0.25), (0, 2, 0.5), (1, 0, 0.125), (2, 7, 0.2), error=0.01))
    save(folder, "openness:low", neuron_set())
    return folder


def report_of(folder: Path, strongest: int = 5) -> NeuronReport:
    return make_report(find_sets(folder), strongest)


def test_the_figures(three: Path) -> None:
    report = report_of(three, strongest=2)
    assert (report.model, report.revision, report.layers, report.neurons) == ("maker/model", "abc", 3, 8)
    high, low, calm = report.targets
    assert [one.target for one in report.targets] == ["openness:high", "openness:low", "neuroticism:low"]
    assert (high.neurons, high.share, high.by_layer, high.median_error) == (4, round(4 / 24, 6), [2, 1, 1], 0.01)
    assert high.delta is not None
    assert high.delta.model_dump() == {"min": 0.125, "median": 0.225, "max": 0.5}
    assert (low.neurons, low.delta, low.by_layer, low.strongest, low.median_error) == (0, None, [0, 0, 0], [], None)
    first, second = high.strongest
    assert first.model_dump() == {
        "layer": 0, "index": 2, "delta": 0.5, "error": 0.01, "probability": 0.5, "a95": 0.25, "others": [],
    }  # fmt: skip
    assert (second.index, second.others) == (1, ["neuroticism:low"])
    assert calm.strongest[0].error is None
    assert report.total.model_dump() == {
        "neurons": 6, "distinct": 4, "share": round(4 / 24, 6), "delta": {"min": 0.125, "median": 0.225, "max": 0.5},
    }  # fmt: skip
    assert report.overlap.shared == [[4, 0, 2], [0, 0, 0], [2, 0, 2]]
    assert report.overlap.share == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    told = dict(zip(report.delta_grid, high.at_least, strict=True))
    assert (told[0.0], told[0.12], told[0.13], told[0.25], told[0.26], told[0.5], told[0.51]) == (4, 4, 3, 2, 1, 1, 0)
    assert low.at_least == [0] * len(report.delta_grid)
    assert calm.about["settings"] == {"questions": 30}
    assert high.content == find_sets(three).sets[TARGETS[0]].neurons.content_hash


def test_a_count_of_strongest(three: Path) -> None:
    assert [len(one.strongest) for one in report_of(three, strongest=0).targets] == [0, 0, 0]
    assert [len(one.strongest) for one in report_of(three, strongest=99).targets] == [4, 0, 2]
    assert "must be 0 or more, not -1" in str(refusal("report", three, "--strongest", -1))


# As it is shown


def test_the_terminal(three: Path) -> None:
    done = command("report", three, "--strongest", 2)
    assert done.exit_code == 0
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Personality neurons of maker/model @ abc: 3 layers x 8 neurons"
    words = [line.split() for line in lines]
    assert ["O+", "openness:high", "4", "16.67%", "0.125", "0.225", "0.500", "0.010"] in words
    assert ["O-", "openness:low", "0", "0.00%", "–", "–", "–", "–"] in words
    assert ["all", "6", "0.125", "0.225", "0.500"] in words
    assert ["distinct", "4", "16.67%"] in words
    assert ["O+", "█▄▄", "layer", "0"] in words
    assert ["O-", "···", "–"] in words
    assert ["N-", "1.00", "0.00", "2"] in words  # shares below the diagonal,
    assert ["O+", "4", "0", "2"] in words  # counts above it
    assert ["O+", "0", "2", "0.500", "0.010", "0.500", "0.250", "–"] in words
    assert ["0", "1", "0.250", "0.010", "0.500", "0.250", "1"] in words


def test_bars_are_high_as_the_counts_and_a_deep_model_has_one_for_several_layers(tmp_path: Path) -> None:
    assert bars([0, 1, 8, 16, 15, 9], 16) == "·▁▄██▅"
    assert bars([0, 0], 0) == "··"
    assert short("conscientiousness:low") == "C-"
    save(tmp_path, "openness:high", neuron_set((0, 0, 0.2), (1, 0, 0.2), (127, 0, 0.2), shape=(128, 4)))
    done = command("report", tmp_path)
    assert "Neurons by layer, 0 to 127, 2 layers a bar" in done.stdout
    assert f"█{'·' * 62}▄" in done.stdout


def test_ten_targets_fit_into_80_columns(tmp_path: Path) -> None:
    for seed, target in enumerate(TARGETS):
        save(tmp_path, str(target), random_set(seed, count=20_000, shape=(64, 2_000)))
    report = report_of(tmp_path)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(report_tables(report))
    shown = console.export_text()
    assert "…" not in shown
    assert "openness:high" in shown
    assert len(report.targets) == 10


def test_one_target_only(three: Path, tmp_path: Path) -> None:
    done = command("report", three / "deep" / "openness-high", "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert "O+" in done.stdout
    assert "Overlap" not in done.stdout
    page = (tmp_path / "out" / "neurons.html").read_text()
    assert "Overlap" not in page
    assert page.count("<svg") == 2


def test_sets_without_a_neuron(tmp_path: Path) -> None:
    save(tmp_path, "openness:low", neuron_set())
    done = command("report", tmp_path, "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert "Strongest" not in done.stdout
    assert "Strongest" not in (tmp_path / "out" / "neurons.html").read_text()
    assert report_of(tmp_path).total.delta is None


def test_the_files(three: Path, tmp_path: Path) -> None:
    done = command("report", three, "--output", tmp_path / "out")
    paths = [Path(line) for line in done.stdout.splitlines()[-3:]]
    assert [path.name for path in paths] == ["neurons.json", "neurons.md", "neurons.html"]
    report = report_of(three)
    assert NeuronReport.model_validate(json.loads(paths[0].read_text())) == report
    markdown = paths[1].read_text()
    assert markdown == to_markdown(report)
    assert "| openness high | 4 | 16.67% | 0.125 | 0.225 | 0.500 | 0.010 |" in markdown
    assert "| 0 | 2 | 0 | 1 |" in markdown, "layer 0"
    assert "| neuroticism low | 1.00 (2) | 0.00 (0) | 1.00 (2) |" in markdown
    assert "| openness high | 0 | 1 | 0.250 | 0.010 | 0.500 | 0.250 | neuroticism low |" in markdown


def test_the_page_needs_nothing_from_elsewhere(three: Path) -> None:
    save(three, "extraversion:low", neuron_set((1, 1, 0.2)), note="<script>alert(1)</script>", model="maker/model")
    page = to_html(report_of(three))
    assert page.count("<svg") == 3
    assert not re.search(r"<(script|link|img|iframe|image)|@import|url\(|\bsrc=|\bhref=", page)
    assert not re.search(r'(?<!xmlns=")(?<!xmlns:xlink=")https?://', page)
    assert "&lt;script&gt;alert(1)" in page
    assert "undefined" not in page
    assert "NaN" not in page
    assert "var(--mark)" in page, "the plots take the colours of the page, light or dark"
    assert to_html(report_of(three)) == page


def test_every_figure_of_the_plots_is_there(three: Path) -> None:
    page = to_html(report_of(three))
    bars_of_layers = re.findall(r'aria-label="layer: (\d+); neurons: (\d+); pole: (\w+)"', page)
    assert [(int(layer), int(count)) for layer, count, pole in bars_of_layers if pole == "high"] == [
        (0, 2), (1, 1), (2, 1),
    ]  # fmt: skip
    cells = re.findall(r'aria-label="column: ([\w ]+); row: ([\w ]+); share: ([\d.]+)"', page)
    assert len(cells) == 9
    assert ("openness high", "neuroticism low", "1") in cells


def test_without_what_draws_plots(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)  # importing it fails from here on
    monkeypatch.delitem(sys.modules, "personalitybench.neurons.plots", raising=False)
    done = command("report", three, "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert "Strongest neurons" in done.stdout
    assert "pip install 'personalitybench[plots]'" in done.stderr
    page = (tmp_path / "out" / "neurons.html").read_text()
    assert "<svg" not in page
    assert "pip install &#39;personalitybench[plots]&#39;" in page or "pip install 'personalitybench[plots]'" in page
    assert "<td>1.00<small>2</small></td>" in page, "the overlap is a table then"


# What is refused


def test_folders_without_a_set(tmp_path: Path) -> None:
    assert "does not exist" in str(refusal("report", tmp_path / "none"))
    assert "holds no neuron set" in str(refusal("report", tmp_path))
    Intervention.from_neurons(neuron_set((0, 0, 0.5)), neuron_set()).save(tmp_path / "openness-high")
    (tmp_path / "manifest.json").write_text('{"format": "of something else"}')
    error = refusal("export", tmp_path, "--output", tmp_path / "out")
    assert isinstance(error, DataError)
    assert "name the folder of a finished fit" in str(error)


@pytest.mark.parametrize(
    ("shape", "about", "says"),
    [
        ((3, 9), {}, "3 layers x 8 neurons, .* for 3 layers x 9 neurons"),
        (SHAPE, {"model": "maker/other"}, "maker/model @ abc, .* for maker/other @ abc"),
        (SHAPE, {"revision": "def"}, "maker/model @ abc, .* for maker/model @ def"),
    ],
)
def test_sets_of_two_models(three: Path, shape: tuple[int, int], about: dict[str, str], says: str) -> None:
    save(three, "openness:low", neuron_set((0, 0, 0.5), shape=shape), **about)
    error = refusal("report", three)
    assert isinstance(error, ConfigurationError)
    assert re.search(f"neurons of two models: .*{says}", str(error))


def test_a_set_that_names_no_model_goes_with_any(three: Path) -> None:
    save(three, "openness:low", neuron_set((0, 0, 0.5)), model=None, revision=None)
    assert report_of(three).model == "maker/model"


def test_two_sets_of_one_target(three: Path) -> None:
    save(three / "other", "openness:high", neuron_set())
    assert "openness:high has two neuron sets: " in str(refusal("report", three))


def test_a_set_without_a_target(tmp_path: Path) -> None:
    for about in ({}, {"target": "happiness:high"}, {"target": "openness"}):
        neuron_set().save(tmp_path, about=about)
        assert "does not say whose neurons these are" in str(refusal("report", tmp_path))


def test_an_unfinished_and_a_damaged_set(three: Path) -> None:
    place = save(three, "openness:low", neuron_set((0, 0, 0.5)))
    (place / NEURONS_FILE).write_bytes(b"\0" * 20)
    assert isinstance(refusal("report", three), StorageError)
    (place / "manifest.json").unlink()
    assert "holds no finished neuron set" in str(refusal("report", three))


def test_the_released_file(tmp_path: Path) -> None:
    path = SHARED / "neurons" / "Conscientiousness_dict.json"
    if not path.is_file():
        pytest.skip(f"the released neuron file is not at {path}: it has no licence and is not in the repository")
    layers, neurons = OFFICIAL_SHAPE
    assert command("import", path, "--output", tmp_path, "--layers", layers, "--neurons", neurons).exit_code == 0
    (one,) = report_of(tmp_path).targets
    assert one.neurons == 10_278
    assert one.by_layer[:8] == [61, 47, 33, 179, 156, 124, 149, 127], "as read off the paper's Figure 4"
    assert one.delta is not None
    assert (one.delta.min, one.delta.max) == (0.100001, 0.504416)
    assert (one.strongest[0].layer, one.strongest[0].index) == (13, 9030)
    assert one.strongest[0].error is None
