"""What is written about a fit: curves of training, the files, the page."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from personalitybench.artifacts.kept import KeptFit, read_store
from personalitybench.artifacts.render import to_html, to_markdown
from personalitybench.artifacts.report import ArtifactReport, held_out, make_report, read_curves
from personalitybench.cli import app
from personalitybench.errors import StorageError
from personalitybench.files import write_json
from personalitybench.training.curves import Curve, HeldOutLoss, StepLoss
from personalitybench.traits import TARGETS
from tests.noting import noting

TEN = [str(target) for target in TARGETS]


def curve(target: str, steps: int = 6, first: float = 2.0) -> Curve:
    return Curve(
        target=target,
        examples=12,
        held_out_examples=3,
        parameters=64,
        trained_tokens=1500,
        steps=tuple(
            StepLoss(step=one, loss=first * math.exp(-one / steps), learning_rate=1e-4) for one in range(1, steps + 1)
        ),
        held_out=(HeldOutLoss(step=0, loss=first), HeldOutLoss(step=steps, loss=first / 4)),
    )


def fit_with(curves: Sequence[Curve]) -> KeptFit:
    """A fit that left curves, one in a folder."""
    fit = noting()
    shutil.rmtree(fit.folder, ignore_errors=True)  # its artifact is altered below
    fit.make("/nowhere")
    for number, one in enumerate(curves):
        place = fit.folder / "artifact" / (one.target.replace(":", "-") if one.target in TEN else str(number))
        write_json(place / "curve.json", one.model_dump(mode="json"))
    (found,) = read_store().fits
    return found


def show(fit: KeptFit, output: Path) -> Result:
    return CliRunner().invoke(app, ["artifacts", "show", fit.name, "--output", str(output)], env={"COLUMNS": "80"})


def test_curves_are_read_in_the_order_of_the_targets(cache: Path) -> None:
    fit = fit_with([curve(target) for target in reversed(TEN)])
    report = make_report(fit)
    assert [one.target for one in report.curves] == TEN
    assert list(report.curves) == read_curves(fit.folder / "artifact")
    assert held_out(report.curves[0]) == (2.0, 0.5, 0.25)
    assert held_out(report.curves[0].model_copy(update={"held_out": report.curves[0].held_out[:1]})) is None
    assert read_curves(fit.folder / "nothing") == []
    path = fit.folder / "artifact" / "openness-high" / "curve.json"
    path.write_text(path.read_text().replace('"target"', '"traget"'))
    with pytest.raises(StorageError, match=r"curve\.json is no curve of a training"):
        read_curves(fit.folder / "artifact")
    assert any("is no curve of a training" in note for note in make_report(fit).notes)


def test_the_files(cache: Path, tmp_path: Path) -> None:
    fit = fit_with([curve(target) for target in TEN])
    done = show(fit, tmp_path / "out")
    lines = done.stdout.splitlines()
    paths = [Path(line) for line in lines[-3:]]
    assert [path.name for path in paths] == ["artifact.json", "artifact.md", "artifact.html"]
    row = ["extraversion:low", "2.000", "0.500", "0.250", "12", "3", "6", "1,500"]
    assert row in [line.split() for line in lines]
    report = make_report(fit)
    assert ArtifactReport.model_validate(json.loads(paths[0].read_text())) == report
    markdown = paths[1].read_text()
    assert markdown == to_markdown(report)
    assert f"| {' | '.join(row)} |" in markdown
    assert report.metadata == {"method": "noting", "artifact": "FOLDER", "strength": 1.0}
    for path in paths:
        assert str(cache) not in path.read_text(), "where it lies on this machine is nobody's business"


def test_the_page_has_a_plot_for_each_target(cache: Path) -> None:
    pytest.importorskip("altair")
    report = make_report(fit_with([curve(target, first=2.0 + number) for number, target in enumerate(TEN)]))
    page = to_html(report)
    assert to_html(report) == page, "the same file each time"
    assert page.count("<svg") == 1
    svg = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    text = [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]  # noqa: S314 (our own)
    heads = [name.replace(" ", ":") for name in text if name.replace(" ", ":") in TEN]
    assert heads == [*TEN[::2], *TEN[1::2]], "high poles above, low ones below"
    assert len(set(re.findall(r'aria-label="step: 0; loss: [\d.]+; kind: held out"', svg))) == 10, "before training"
    assert len(re.findall(r'aria-roledescription="line mark"', svg)) == 20, "training and held out, each"
    assert not re.search(r"<(script|link|img|iframe|image)|@import|url\(|\bsrc=|\bhref=", page)
    assert not re.search(r'(?<!xmlns=")(?<!xmlns:xlink=")https?://', page)
    for word in ("undefined", "NaN", "None"):
        assert word not in page
    assert "var(--mark)" in svg


def test_a_long_training_is_drawn_with_few_points(cache: Path) -> None:
    pytest.importorskip("altair")
    from personalitybench.artifacts.plots import MOST_POINTS

    (long,) = (curve("openness:high", steps=10 * MOST_POINTS + 1),)
    page = to_html(make_report(fit_with([long])))
    assert "the mean of 11 steps a point" in page
    line = max(re.findall(r' d="(M[^"]*)"', page), key=len)
    assert 60 < len(re.findall(r"[ML]", line)) <= MOST_POINTS
    assert "steps a point" not in to_html(make_report(fit_with([curve("openness:high")])))


def test_what_others_wrote_is_escaped(cache: Path) -> None:
    pytest.importorskip("altair")
    fit = fit_with([curve("<script>alert(1)</script>").model_copy(update={"steps": ()})])
    write_json(fit.folder / "artifact" / "provenance.json", {"versions": {"<b>": "<i>1"}})
    (fit.folder / "artifact" / "unreadable").touch()
    page = to_html(make_report(fit))
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 2, "in the table and in the plot"
    assert "&lt;b&gt; &lt;i&gt;1" in page
    assert "ValueError: &lt;b&gt;cannot" in page


def test_without_curves_there_is_no_training_and_no_plot(cache: Path) -> None:
    report = make_report(fit_with([]))
    page = to_html(report)
    assert "<svg" not in page
    assert "Training" not in page
    assert "pip install" not in page
    assert "Training" not in to_markdown(report)


def test_without_what_draws_plots(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fit_with([curve("openness:high")])
    monkeypatch.setitem(sys.modules, "altair", None)  # importing it fails from here on
    monkeypatch.delitem(sys.modules, "personalitybench.artifacts.plots", raising=False)
    package = sys.modules["personalitybench.artifacts"]
    monkeypatch.delattr(package, "plots", raising=False)
    done = show(fit, tmp_path / "out")
    assert done.exit_code == 0
    assert "pip install 'personalitybench[plots]'" in done.stderr
    page = (tmp_path / "out" / "artifact.html").read_text()
    assert "<svg" not in page
    assert "The plots were left out" in page
    assert "<td>0.250</td>" in page, "the figures are there all the same"
