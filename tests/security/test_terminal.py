"""Text from outside on a terminal and in Markdown: no control sequence, no markup, no HTML, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from personalitybench.console import PlainConsole, plain_text
from personalitybench.leaderboard.render import read_board, to_markdown
from personalitybench.leaderboard.schema import Row, RowIdentity
from personalitybench.outside_text import escape_controls, escape_markdown, single_line
from personalitybench.pages import markdown_row
from personalitybench.resources import bundled
from tests.security.terminal import one_line, run_command, run_on_terminal, write_judge, write_plug_in

TITLE, ERASE, LINK, C1, BIDI = "\x1b]0;PWNED\x07", "\x1b[2J", "\x1b]8;;http://evil\x1b\\", "\x9b31m", "\u202e"
MARKUP = "[link=http://evil]m[/link] [bold red]x [/x]"
HOSTILE = f"{TITLE}{ERASE}{LINK}{C1}{BIDI}{MARKUP}"

SUITE = """
name: plain
models: [{name: nothing, backend: dummy}]
methods: [none]
targets: ['openness:high', 'openness:low']
judges: [%s]
questions: {limit: 1}
floors: false
"""


def assert_harmless(written: str) -> None:
    for sequence in (TITLE, ERASE, "\x1b]8", "\x9b", BIDI, "\x07"):
        assert sequence not in written, repr(written)


def write_board(path: Path, text: str) -> Path:
    """The paper's board with a text in every place that a table or page shows."""
    board: dict[str, Any] = json.loads((bundled("leaderboards") / "paper" / "llama-3-8b-instruct.json").read_text())
    board["name"] = board["caveat"] = board["source"] = f"{text}\n# heading\n| a | b |\n<script>&![i](http://evil)"
    board["judge"]["id"] = text
    for number, row in enumerate(board["rows"]):
        row["identity"]["model"]["name"] = text
        row["identity"]["judge"]["id"] = text
        row["identity"]["method"] |= {"name": text, "settings": {text: f"{text}{number}"}}
        row["id"] = Row.make_id(RowIdentity.model_validate(row["identity"]))
    path.write_text(json.dumps(board))
    return path


@pytest.fixture
def hostile_board(tmp_path: Path) -> Path:
    return write_board(tmp_path / "board.json", HOSTILE)


def test_a_board_writes_no_control_sequence_to_a_terminal(hostile_board: Path, tmp_path: Path) -> None:
    status, written = run_on_terminal("leaderboard", "show", hostile_board, cwd=tmp_path)
    assert status == 0, written
    assert_harmless(written)
    assert "PWNED" in written
    assert "[/x]" in written


def test_a_board_without_controls_keeps_its_brackets(tmp_path: Path) -> None:
    board = write_board(tmp_path / "board.json", "name[/x] [bold]")
    done = run_command("leaderboard", "show", board, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "name[/x] [bold]" in done.stdout


def test_an_error_line_names_a_hostile_path_escaped(tmp_path: Path) -> None:
    status, written = run_on_terminal("leaderboard", "show", f"b{ERASE}[/x].json", cwd=tmp_path)
    assert status == 2
    assert_harmless(written)
    assert r"b\u001b[2J[/x].json" in written.replace("\r\n", "")


def test_an_exception_of_a_plug_in_writes_no_control_sequence(tmp_path: Path) -> None:
    found = write_plug_in(tmp_path / "packages", "methods", "evil", f"raise RuntimeError({HOSTILE!r})")
    _, written = run_on_terminal("methods", "show", "evil/plugin", cwd=tmp_path, **found)
    assert_harmless(written)
    assert "PWNED" in written


@pytest.mark.parametrize("folder", ["a[/x]", "r [bold]"])
def test_brackets_in_output_paths_are_printed_as_they_are(folder: str, tmp_path: Path) -> None:
    found = write_judge(tmp_path / "j[/x]", tmp_path / "packages")
    (tmp_path / "s.yaml").write_text(SUITE % "'j[/x]/constant.yaml'")
    done = run_command("run", "s.yaml", "--output", folder, cwd=tmp_path, **found)
    assert done.returncode == 0, done.stderr
    assert str((tmp_path / folder / "leaderboard.json").resolve()) in done.stdout.splitlines()
    status, written = run_on_terminal("run", "s.yaml", "--output", folder, cwd=tmp_path, **found)
    assert status == 0, written
    assert folder in written


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("leaderboard", "show", "{board}"),
        ("methods",),
        ("judges",),
        ("doctor",),
        ("--help",),
        ("run", "{suite}", "--dry-run"),
    ],
    ids=" ".join,
)
def test_a_terminal_that_is_not_utf_8_gets_replacements(
    arguments: tuple[str, ...], encoding: str, tmp_path: Path
) -> None:
    board = bundled("leaderboards") / "paper" / "llama-3-8b-instruct.json"
    (tmp_path / "s.yaml").write_text(SUITE % "offline")
    given = [part.format(board=board, suite="s.yaml") for part in arguments]
    done = run_command(*given, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "━" not in done.stdout


def test_a_lone_surrogate_is_printed_as_an_escape(tmp_path: Path) -> None:
    line = one_line(run_command("leaderboard", "show", "b\udc80.json", cwd=tmp_path))
    assert r"b\udc80.json" in line


def test_markdown_of_a_hostile_board_has_no_html_and_no_lines_of_its_own(hostile_board: Path) -> None:
    text = to_markdown(read_board(hostile_board))
    assert "<script" not in text
    assert "](http" not in text
    assert_harmless(text)
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == []
    assert not any(line.startswith("| a | b |") for line in text.splitlines())


def test_cells_of_markdown_stay_cells() -> None:
    assert markdown_row(["a|b", "c\\|d", "e\nf", "<b>&"]) == r"| a\|b | c\\\|d | e f | &lt;b>&amp; |"


def test_escapes_of_controls() -> None:
    assert escape_controls("a\tb\nc é 忽 \x1b\x9b\u202e\ud800") == "a\tb\nc é 忽 \\u001b\\u009b\\u202e\\ud800"
    assert single_line(" a\n b\x85c\r\n") == r"a b\u0085c"
    assert escape_markdown("a\n# b") == "a # b"
    assert escape_markdown("[m]: javascript:alert(1)") == r"[m]\: javascript:alert(1)"


def test_a_console_measures_text_after_its_escape() -> None:
    console = PlainConsole(width=60, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    table = Table("head[/x]", title=f"title {ERASE}", caption=MARKUP)
    table.add_row(plain_text(f"cell {ERASE} end", style="bold"))
    console.print(table)
    shown = console.export_text()
    assert r"title \u001b[2J" in shown
    assert r"cell \u001b[2J end" in shown
    assert "head[/x]" in shown
