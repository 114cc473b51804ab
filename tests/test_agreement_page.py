"""What people see of a report on agreement: files, page and terminal."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from personalitybench.judging.agreement import plots, render
from personalitybench.judging.agreement.render import to_html, to_markdown, write_report
from personalitybench.judging.agreement.report import make_report
from personalitybench.judging.agreement.schema import AgreementReport, Figure
from personalitybench.judging.agreement.table import ComparedAnswer, RatingTable
from personalitybench.judging.agreement.tables import report_tables
from personalitybench.judging.agreement.words import number, with_interval
from tests.rating_tables import answers, column, table, verdicts

WICKED = "human:<script>alert(1)</script>|x"
SVG = "{http://www.w3.org/2000/svg}"


class Tags(HTMLParser):
    """Names of all tags that are opened, and what is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]


@pytest.fixture(scope="module")
def report() -> AgreementReport:
    """Three judges, one of them asked twice and with unrated answers, one with a name that is an attack."""
    rated = answers(4, methods=("none", "p2 <i>"), traits=("openness", "extraversion"))

    def numbers(step: int) -> list[float]:
        return [1.0 + (place * step) % 5 for place in range(len(rated))]

    first = verdicts(rated, ["no_rating", *numbers(2)[1:]], numbers(1))
    again = verdicts(rated, numbers(2), numbers(1))
    second = verdicts(rated, [None, None, *numbers(3)[2:]])
    judges = [column("first", first, again), column("second", second), column(WICKED, verdicts(rated, numbers(4)))]
    return make_report(RatingTable("a <made up> run", rated, judges), resamples=60)


def shown(report: AgreementReport, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(report_tables(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_files_are_written_and_the_json_is_the_report(report: AgreementReport, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path / "made")
    assert [path.name for path in paths] == ["agreement.json", "agreement.md", "agreement.html"]
    content = paths[0].read_text(encoding="utf-8")
    assert "NaN" not in content
    assert AgreementReport.model_validate(json.loads(content)) == report
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)


def test_what_others_named_is_text_on_the_page(report: AgreementReport) -> None:
    page = to_html(report)
    tags = Tags(page)
    assert "script" not in tags.opened
    assert "i" not in tags.opened
    assert "made" not in tags.opened
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5


def test_the_page_fetches_nothing_and_has_no_gaps_in_its_figures(report: AgreementReport) -> None:
    page = to_html(report)
    assert [place for place in Tags(page).fetched if not place.startswith("#")] == []
    assert not re.search(r"\b(nan|NaN|None)\b", page)
    assert "Krippendorff" in page


def test_the_page_has_the_figures_of_the_report(report: AgreementReport) -> None:
    page = to_html(report)
    for aspect in report.aspects:
        for pair in aspect.pairs:
            assert f"<td>{number(pair.overall.kappa.value)}" in page
    assert "no rating 1" in page
    assert "not asked 2" in page
    assert "The same asked again" in page


def test_each_pair_has_a_heat_map_with_its_counts(report: AgreementReport) -> None:
    drawn = plots.draw(report.aspects[0])
    assert set(drawn) == {"look", "ratings", "bias"}
    labels = [one.text for one in ET.fromstring(drawn["ratings"]).iter(f"{SVG}text")]  # noqa: S314 (our own drawing)
    for pair in report.aspects[0].pairs:
        assert labels.count(pair.first) >= 1
        for count in {count for row in pair.counts for count in row} - {0}:
            assert str(count) in labels
    assert WICKED in labels


def test_a_heat_map_puts_the_first_judge_across_and_the_second_up() -> None:
    """One answer, which the first rates 1 and the second 5, stands at the left and at the top."""
    rated = answers(2)
    judged = table(rated, first=lambda *_: 1.0, second=lambda *_: 5.0)
    drawn = ET.fromstring(plots.draw(make_report(judged, resamples=0).aspects[0])["ratings"])  # noqa: S314
    rects = [one.get("aria-label") or "" for one in drawn.iter(f"{SVG}path") if one.get("aria-roledescription")]
    full = [label for label in rects if "share: 1" in label]
    assert full
    assert all("first: 1; second: 5" in label for label in full)


def test_plots_of_judges_with_nothing_in_common_are_left_out() -> None:
    rated = answers(2)
    first, second = verdicts(rated, [1, 2, None, None]), verdicts(rated, [None, None, 3, 4])
    made = make_report(RatingTable("here", rated, [column("a", first), column("b", second)]))
    assert plots.draw(made.aspects[0]) == {}
    assert "–" in to_html(made)
    assert "–" in to_markdown(made)
    assert "–" in shown(made)


def test_without_what_draws_the_page_has_tables_and_says_how_to_get_plots(
    report: AgreementReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "can_plot", lambda: False)
    page = to_html(report)
    assert "<svg" not in page
    assert "personalitybench[plots]" in page
    assert page.count('class="plain ratings"') == 3  # of fluency no two judges rated the same


def test_markdown_tables_are_whole(report: AgreementReport) -> None:
    text = to_markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    block: list[int] = []
    for line in text.splitlines():
        if line.startswith("|"):
            block.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(block)) <= 1
            block = []
    escaped = WICKED.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    assert any(escaped in line for line in rows)
    assert "<" not in text


def test_the_terminal_shows_all_pairs_in_80_columns(report: AgreementReport) -> None:
    text = shown(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for pair in ("1 / 2", "1 / 3", "2 / 3"):
        assert pair in text
    kappa = report.aspects[0].pairs[0].overall.kappa
    assert number(kappa.value) in text


def test_long_names_and_reasons_cut_nothing_off() -> None:
    rated = answers(10)
    names = [f"a-served-model-with-a-long-name-instruct-{number}" for number in range(3)]
    reasons = ["no-rating", "refused", "out-of-range", "truncated"]
    judged = [
        column(
            name,
            verdicts(rated, [*reasons, *(1.0 + (place * (step + 2)) % 5 for place in range(16))]),
            verdicts(rated, [1.0 + (place * (step + 2)) % 5 for place in range(20)]),
        )
        for step, name in enumerate(names)
    ]
    text = shown(make_report(RatingTable("here", rated, judged), resamples=50))
    assert max(map(len, text.splitlines())) <= 80
    for word in [*names, *reasons, "unrated", "|d|", "bias"]:
        assert word in text
    for head in (line for line in text.splitlines() if line.startswith("judge ")):
        assert head.rstrip().endswith(("|d|", "unrated"))


def test_names_of_judges_are_no_markup_on_the_terminal() -> None:
    rated = answers(3)
    judged = [column(name, verdicts(rated, [1, 2, 3, 4, 5, 1])) for name in ("[red]a[/]", "[bold]b")]
    text = shown(make_report(RatingTable("[link=x]run[/link]", rated, judged), resamples=0))
    assert "[red]a[/]" in text
    assert "[bold]b" in text
    assert "[link=x]run[/link]" in text


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(), "–"),
        (Figure(value=0.5), "0.50"),
        (Figure(value=-0.25, interval=(-0.5, 0.001)), "−0.25 [−0.50, 0.00]"),
        (Figure(value=-0.001, interval=(-0.004, 1)), "0.00 [0.00, 1.00]"),
        (None, "–"),
    ],
)
def test_figures_are_written_with_their_intervals(figure: Figure | None, text: str) -> None:
    assert with_interval(figure) == text


def test_one_judge_alone_has_a_page() -> None:
    rated = [*answers(3), ComparedAnswer("q", "", "Only this.", "openness", "neutral", "gold")]
    made = make_report(RatingTable("here", rated, [column("only", verdicts(rated, [1, 2, 3, 4, 5, 1, 2]))]))
    assert "Each judge by itself" in to_html(made)
    assert "only" in to_markdown(made)
    assert "only" in shown(made)
