"""The board: figures worked out by hand, the exported schema, the page."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from personalitybench import pages
from personalitybench.costs import FitCost
from personalitybench.errors import ConfigurationError, DataError
from personalitybench.judging import Rating, Unrated, Verdict
from personalitybench.leaderboard import plots
from personalitybench.leaderboard.build import Cell, JudgedAnswer, build_board
from personalitybench.leaderboard.examples import pick_examples
from personalitybench.leaderboard.fit_costs import fit_costs
from personalitybench.leaderboard.lm_eval_results import read_cells, read_tasks
from personalitybench.leaderboard.render import read_board, to_html, to_markdown, write_board
from personalitybench.leaderboard.schema import Leaderboard, Provenance, Sweep
from personalitybench.leaderboard.summary import board_table
from personalitybench.leaderboard.sweeps import build_sweep
from personalitybench.resources import bundled
from personalitybench.traits import TARGETS, Target

JUDGE = {"id": "offline", "profile_sha256": "p", "rubric_sha256": "r"}
PROTOCOL = {
    "task_version": 1,
    "prompts": "project",
    "prompts_sha256": "w",
    "max_tokens": 400,
    "temperature": 0.0,
    "repetition_penalty": 1.15,
    "chat_template": True,
}
IDENTITY = {
    "method": {"name": "npti", "version": "1"},
    "data": {"source": "sample", "revision": "d", "split": "evaluate"},
    "protocol": PROTOCOL,
    "seed": 0,
}


def cell(
    target: str,
    verdicts: Mapping[str, Verdict],
    method: str = "simple",
    seed: int = 0,
    judge: Mapping[str, str] = JUDGE,
) -> Cell:
    settings: dict[str, Any] = {
        "method": {"name": method, "version": "1"},
        "data": {"source": "sample", "revision": "d"},
        "protocol": PROTOCOL,
        "seed": seed,
    }
    answers = [JudgedAnswer(key, f"Answer <b>{key}</b>.", v, Rating(5.0), f"{key} <i>?") for key, v in verdicts.items()]
    model = {"name": "<script>model</script>", "revision": "1"}
    return Cell(model, settings, judge, Target.parse(target), answers, Provenance(backend="hf"))


def ratings(*values: float) -> dict[str, Verdict]:
    return {f"q{index}": Rating(value) for index, value in enumerate(values)}


def test_figures_by_hand() -> None:
    high = {**ratings(4.0, 5.0, 3.0), "q3": Unrated("refusal")}
    low = ratings(2.0, 1.0, 3.0, 2.0)
    board = build_board("b", [cell("openness:high", high), cell("openness:low", low)])
    (row,) = board.rows
    result = row.targets["openness:high"]
    assert (result.n, result.rated, result.coverage) == (4, 3, 0.75)
    assert result.unrated == {"refusal": 1}
    assert result.mean == 4.0
    assert result.sd == pytest.approx(1.0)
    assert row.targets["openness:low"].mean == 4.0, "a low pole is scored as 6 - rating"
    composite = row.traits["openness"]
    assert composite.mean == 8.0
    assert composite.variance == pytest.approx(1.0 + 2 / 3, abs=1e-6)
    assert composite.interval is not None
    assert composite.interval[0] < 8.0 < composite.interval[1]
    assert row.average.mean == 8.0
    assert row.fluency_traits["openness"].mean == 10.0


def test_a_reason_that_is_no_utf8_is_written_escaped(tmp_path: Path) -> None:
    board = build_board("b", [cell("openness:high", {"q0": Unrated("a\ud800"), "q1": Rating(2.0)})])
    path = write_board(board, tmp_path)[0]
    assert read_board(path).rows[0].targets["openness:high"].unrated == {"a\\ud800": 1}


def test_nothing_rated_is_no_number() -> None:
    board = build_board("b", [cell("openness:high", {"q0": Unrated("refusal")}), cell("openness:low", ratings(2.0))])
    (row,) = board.rows
    assert row.targets["openness:high"].mean is None
    assert row.targets["openness:high"].coverage == 0.0
    assert row.traits["openness"].mean is None
    assert row.average.mean is None
    assert "–" in to_markdown(board)


def test_seeds_pool_in_a_row_and_methods_do_not() -> None:
    cells = [
        cell("openness:high", ratings(4.0, 2.0), seed=0),
        cell("openness:high", ratings(5.0, 3.0), seed=1),
        cell("openness:high", ratings(1.0, 1.0), method="none"),
    ]
    board = build_board("b", cells)
    rows = {row.identity.method.name: row for row in board.rows}
    assert rows["simple"].identity.seeds == [0, 1]
    assert rows["simple"].targets["openness:high"].mean == 3.5
    assert rows["simple"].identity.data.questions == 2
    assert rows["none"].targets["openness:high"].mean == 1.0


def test_judges_are_never_mixed() -> None:
    other = {**JUDGE, "rubric_sha256": "another"}
    with pytest.raises(DataError, match="different judges"):
        build_board("b", [cell("openness:high", ratings(1.0)), cell("openness:low", ratings(1.0), judge=other)])
    with pytest.raises(DataError, match="no judged answers"):
        build_board("b", [])


def test_a_result_given_twice_is_refused() -> None:
    once = cell("openness:high", ratings(1.0, 2.0))
    with pytest.raises(DataError, match=r"two results for openness:high .*'simple', seed 0: give each result once"):
        build_board("b", [once, once])


def test_rows_are_sorted_and_identity_is_stable() -> None:
    cells = [
        cell("openness:high", ratings(2.0, 2.0), method="none"),
        cell("openness:low", ratings(2.0, 2.0), method="none"),
        cell("openness:high", ratings(5.0, 4.0)),
        cell("openness:low", ratings(1.0, 2.0)),
    ]
    board = build_board("b", cells)
    assert [row.identity.method.name for row in board.rows] == ["simple", "none"]
    assert build_board("b", reversed(cells)) == board


def test_the_exported_schema_is_in_step() -> None:
    exported = json.loads(bundled("leaderboards", "schema.json").read_text())
    assert exported == Leaderboard.model_json_schema(), (
        "run: personalitybench leaderboard schema > leaderboards/schema.json"
    )


def test_a_written_board_follows_the_schema_and_reads_back(tmp_path: Path) -> None:
    board = build_board("b", [cell("openness:high", ratings(1.0, 2.0)), cell("openness:low", ratings(1.0, 2.0))])
    paths = write_board(board, tmp_path)
    assert [path.name for path in paths] == ["leaderboard.json", "leaderboard.md", "index.html"]
    content = json.loads(paths[0].read_text())
    jsonschema.validate(content, json.loads(bundled("leaderboards", "schema.json").read_text()))
    assert read_board(paths[0]) == board
    content["rows"][0]["avrage"] = 1
    paths[0].write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"rows\.0\.avrage.*did you mean 'average'"):
        read_board(paths[0])


def test_the_page_escapes_what_others_wrote_and_says_every_mean(tmp_path: Path) -> None:
    board = build_board("b", [cell("openness:high", ratings(1.25, 2.5)), cell("openness:low", ratings(1.0, 2.0))])
    page = to_html(board)
    assert "<script>" not in page
    assert "&lt;script&gt;model" in page
    (row,) = board.rows
    for mean in (row.average.mean, row.targets["openness:high"].mean, row.targets["openness:low"].mean):
        assert mean is not None
        assert f"{mean:.2f}" in page
        assert not math.isnan(mean)
    assert not re.search(r"(src|href)=", page), "the page fetches nothing"


def test_lm_eval_results_without_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--output_path"):
        list(read_cells(tmp_path))
    config = {"t": {"metadata": {"personalitybench": {"target": "openness:high", "identity": IDENTITY}}}}
    (tmp_path / "results_1.json").write_text(json.dumps({"configs": config, "config": {}}))
    with pytest.raises(DataError, match="--log_samples"):
        list(read_cells(tmp_path))
    (tmp_path / "results_1.json").write_text("[]")
    with pytest.raises(DataError, match="not a results file"):
        list(read_cells(tmp_path))


def steered(strength: Any, protocol: str, *cells: Cell) -> list[Cell]:
    """The same cells of a method with a strength."""
    method = {"name": "<b>npti", "version": "1", "strength": strength, "strength_protocol": protocol}
    return [replace(each, settings=each.settings | {"method": method}) for each in cells]


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    """Two traits at three strengths; only the openness of the strongest is worth more."""

    def cells(*values: float) -> list[Cell]:
        names = ("openness:high", "openness:low", "neuroticism:high", "neuroticism:low")
        return [cell(name, ratings(*values)) for name in names]

    at = {1.0: (3.0, 3.0), 1.5: (3.0, 4.0), 2.0: (5.0, 4.0)}
    by_strength = {s: steered(s, "given", *cells(*values)) for s, values in at.items()}
    return build_sweep(cells(4.0, 4.0), by_strength, slack=0.0)


def tuned_board(sweep: Sweep) -> Leaderboard:
    cells = [cell(target, ratings(4.0, 2.0)) for target in sweep.targets]
    rows = [*cells, *steered(sweep.method.strength, "held-out", *cells), *steered(1.0, "paper", *cells)]
    return build_board("b", rows, sweeps=[sweep])


def test_the_table_marks_how_a_strength_was_come_by(sweep: Sweep) -> None:
    board = tuned_board(sweep)
    (held_out,) = [row for row in board.rows if sweep.made(row)]
    assert held_out.identity.method.strength_protocol == "held-out"
    lines = to_markdown(board).splitlines()
    assert any("| &lt;b>npti at 1–2 | held-out |" in line for line in lines)
    assert any("| &lt;b>npti at 1 | paper |" in line for line in lines)
    assert any("| simple | – |" in line for line in lines)
    assert "| openness:high | 5.0 | 3.00 (5.00; 0.00) | 3.50 (5.00; 0.00) | 4.50* (5.00; 0.00) |" in lines
    cells = [str(cell) for cell in board_table(board).columns[0]._cells]
    assert sorted(cells) == ["<b>npti at 1\npaper", "<b>npti at 1–2\nheld-out", "simple"]


def test_where_no_strength_met_the_floor_it_says_so(sweep: Sweep) -> None:
    first = sweep.targets["openness:low"]
    failed = sweep.model_copy(
        update={"targets": {**sweep.targets, "openness:low": first.model_copy(update={"floor_met": False})}}
    )
    text = to_markdown(tuned_board(failed))
    caption = board_table(tuned_board(failed)).caption
    assert "<b>npti at 1–2: no strength met the floor of fluency for 1 of 4 targets" in str(caption)
    assert "held-out; floor not met: 1 of 4" in text
    assert "No strength met the floor: openness:low (the most fluent was taken)." in text
    assert f"{first.points[0].result.mean:.2f}(*)" in text


def test_the_figure_of_a_sweep(sweep: Sweep) -> None:
    pytest.importorskip("altair")
    svg = plots.sweep_figure(sweep)
    assert svg == plots.sweep_figure(sweep), "the same file each time"
    root = ET.fromstring(svg)  # noqa: S314 (our own)
    text = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"openness", "neuroticism", "high", "low", "trait score", "fluency", "strength"} <= set(text)
    assert "extraversion" not in text
    assert text.count("1.5") >= 2, "the strengths are the ticks"
    assert "currentColor" in svg
    assert not re.search(r"<(script|image|style)|(src|href)=|url\(\s*['\"]?http", svg)
    assert "<b>" not in svg


def test_the_page_with_a_sweep_and_answers(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("altair")
    cells = [cell(str(target), {"q1": Rating(2.0), "q0": Unrated("empty_answer")}) for target in TARGETS]
    cells += [cell(str(target), {**ratings(3.0, 4.0)}, method="none") for target in TARGETS]
    board = build_board("b", cells, sweeps=[sweep])
    page = to_html(board, pick_examples(cells))
    assert page.count("<svg") == 1
    assert page.count("<article>") == 6
    assert re.findall(r"<h3>(.*)</h3>", page) == ["openness:high", "conscientiousness:low", "agreeableness:high"]
    assert page.count("q0 &lt;i&gt;?</blockquote>") == 3, "the first question by its id, escaped"
    assert page.count("score empty answer · fluency 5.0") == 3
    assert "Answer &lt;b&gt;q0&lt;/b&gt;." in page
    assert "<i>?" not in page
    assert "<b>npti" not in page
    monkeypatch.setattr(pages, "find_spec", lambda _: None)
    without = to_html(board)
    assert "<svg" not in without
    assert "pip install &#39;personalitybench[plots]&#39;" in without
    assert "4.50*" in without, "the figures are there all the same"


def fitted_board(*costs: FitCost | None, models: Sequence[str] = ("m",), **settings: Sequence[Any]) -> Leaderboard:
    """A board with a row for each cost and model; the fits differ in settings."""
    cells = [
        replace(cell("openness:high", ratings(3.0, 4.0), method="none"), model={"name": models[0], "revision": "1"})
    ]
    for model in models:
        for place, cost in enumerate(costs):
            chosen = {name: values[place] for name, values in settings.items()}
            artifact = f"{model}{place}" if settings else f"{model}a"
            method = {"name": "<b>fit", "version": "1", "settings": chosen, "strength": 1.0 + place}
            method |= {"strength_protocol": "paper", "artifact": artifact}
            one = cell("openness:high", ratings(3.0, 4.0))
            made = Provenance(backend="hf", fit=cost)
            record = {"name": model, "revision": "1"}
            cells.append(replace(one, model=record, settings=one.settings | {"method": method}, provenance=made))
    return build_board("b", cells)


def test_what_the_fits_took(capsys: pytest.CaptureFixture[str]) -> None:
    """One wording on the page, in Markdown and on a terminal; rows of one fit are one line."""
    cost = FitCost(seconds=158.2, generated_tokens=25_012, neurons=24_321, bytes=1_234_567)
    board = fitted_board(cost, cost)
    assert fit_costs(board) == {"<b>fit": cost}
    markdown = to_markdown(board).splitlines()
    head = markdown.index("| fit | time | tokens written | neurons | size |")
    assert markdown[head + 2] == "| &lt;b>fit | 158 s | 25,012 | 24,321 | 1.2 MB |"
    page = to_html(board)
    assert "<h2>What the fits took</h2>" in page
    assert "<tr><td>&lt;b&gt;fit</td><td>158 s</td><td>25,012</td><td>24,321</td><td>1.2 MB</td></tr>" in page
    assert page.count("<dd>158 s, 25,012 tokens written, 24,321 neurons, 1.2 MB</dd>") == 2, "in each row's provenance"
    Console(width=80).print(board_table(board))
    below = " ".join(capsys.readouterr().out.split())
    assert " fit of <b>fit: 158 s, 25,012 tokens written, 24,321 neurons, 1.2 MB Average and traits" in below
    assert Leaderboard.model_validate_json(board.model_dump_json()) == board


def test_fits_are_told_apart_by_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = FitCost(seconds=1.0), FitCost(seconds=2.0, trained_tokens=9)
    board = fitted_board(small, large, rank=(8, 16), alpha=(32, 32))
    assert fit_costs(board) == {"<b>fit (rank=8)": small, "<b>fit (rank=16)": large}
    assert "| &lt;b>fit (rank=8) | 1.0 s | – |" in to_markdown(board).splitlines()
    of_two = fitted_board(small, models=("m", "[n]"))
    assert set(fit_costs(of_two)) == {"<b>fit for m", "<b>fit for [n]"}
    assert "fit of <b>fit for [n]: 1.0 s" in str(board_table(of_two).caption)
    seeds = fitted_board(small, large, rank=(8, 8))
    assert [label.partition(",")[0] for label in fit_costs(seeds)] == ["<b>fit", "<b>fit"]
    assert len(fit_costs(seeds)) == 2


@pytest.mark.parametrize("cost", [None, FitCost()])
def test_rows_without_a_cost_say_nothing_of_one(cost: FitCost | None) -> None:
    board = fitted_board(cost)
    assert fit_costs(board) == {}
    assert "took" not in to_markdown(board) + to_html(board) + str(board_table(board).caption)
    assert "<dt>fit</dt>" not in to_html(board)


def test_a_cost_comes_with_results_of_lm_eval(tmp_path: Path) -> None:
    """As the task leaves it in the results' configuration; results of before have none."""
    for name, record in (("with", {"fit": {"seconds": 3.0, "neurons": 5}}), ("without", {})):
        about = {
            "identity": IDENTITY,
            "target": "openness:high",
            "judges": {},
            "versions": {},
            **record,
        }
        folder = tmp_path / name
        folder.mkdir()
        results = {
            "configs": {"t": {"metadata": {"personalitybench": about}}},
            "config": {"model": "hf", "model_args": {"pretrained": "m"}, "batch_size": 1},
        }
        (folder / "results_1.json").write_text(json.dumps(results))
        (folder / "samples_t_1.jsonl").write_text("")
    (with_cost,) = read_tasks(tmp_path / "with")
    assert with_cost.provenance.fit == FitCost(seconds=3.0, neurons=5)
    (without,) = read_tasks(tmp_path / "without")
    assert without.provenance.fit is None


def test_official_questions_and_answers_are_not_shown() -> None:
    cells = [cell("openness:high", ratings(3.0, 4.0))]
    assert len(pick_examples(cells)) == 1
    data = {"source": "official", "revision": "d"}
    assert pick_examples([*cells, replace(cells[0], settings=cells[0].settings | {"data": data})]) == []
