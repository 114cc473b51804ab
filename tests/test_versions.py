"""Versions found beside versions tried: the ranges, the warning, provenance, the error for drift."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from personalitybench import cli, versions
from personalitybench.errors import DependencyDriftError, MissingDependencyError
from personalitybench.versions import (
    drift_error,
    find_library,
    import_failure,
    installed_version,
    package_versions,
    tried_ranges,
    untried_versions,
    warn_of_untried_versions,
)


@pytest.fixture(autouse=True)
def _warned_never() -> Iterator[None]:
    warn_of_untried_versions.cache_clear()
    yield
    warn_of_untried_versions.cache_clear()


@pytest.fixture
def old_range(monkeypatch: pytest.MonkeyPatch) -> str:
    """Have lm-eval be newer than all that was tried."""
    monkeypatch.setattr(versions, "tried_ranges", lambda: {"lm-eval": SpecifierSet(">=0.1,<0.2")})
    return f"lm_eval {installed_version('lm_eval')} (tried: >=0.1,<0.2)"


def test_tried_ranges_are_those_of_the_package_metadata() -> None:
    ranges = tried_ranges()
    assert {"lm-eval", "transformers", "torch", "peft", "vllm"} <= ranges.keys()
    assert all(any(part.operator == "<" for part in ranges[name]) for name in ("transformers", "torch", "peft"))
    assert "openai" not in ranges, "a range without an upper end promises nothing"


def test_installed_versions_within_the_ranges_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    if untried_versions():
        pytest.skip("this environment has versions outside of the ranges, on purpose")
    warn_of_untried_versions()
    assert caplog.text == ""


def test_a_version_outside_warns_once_and_is_recorded(old_range: str, caplog: pytest.LogCaptureFixture) -> None:
    assert untried_versions() == [old_range]
    with caplog.at_level(logging.WARNING, "personalitybench"):
        warn_of_untried_versions()
        warn_of_untried_versions()
    assert caplog.text.count(old_range) == 1
    assert package_versions()["lm_eval"] == installed_version("lm_eval")


def test_drift_outside_the_range_says_what_to_install(old_range: str) -> None:
    found = installed_version("lm_eval")
    expected = f"lm_eval {found} calls nothing (tried: >=0.1,<0.2): install 'lm-eval>=0.1,<0.2'"
    assert str(drift_error("lm_eval", "calls nothing")) == expected


def test_drift_inside_the_range_asks_for_a_report() -> None:
    library = find_library("lm_eval")
    assert library is not None
    text = str(drift_error("lm_eval", "calls nothing"))
    assert text.startswith(f"lm_eval {library.found} calls nothing (tried: ")
    assert library.is_tried == text.endswith("please report this")


def test_drift_of_a_library_that_is_not_installed_still_reads_as_one_line() -> None:
    expected = "no-such-library is odd: its metadata names no version, so install it again"
    assert str(drift_error("no-such-library", "is odd")) == expected


def test_an_import_of_a_package_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(ImportError) as failure:
        import no_such_package_at_all  # noqa: F401
    error = import_failure(failure.value, "the diary", "hf")
    assert isinstance(error, MissingDependencyError)
    expected = "the diary needs no_such_package_at_all, which is not installed: pip install 'personalitybench[hf]'"
    assert str(error) == expected


def test_an_import_of_a_name_that_is_gone_is_drift(old_range: str) -> None:
    with pytest.raises(ImportError) as failure:
        from lm_eval.api.model import NoSuchModel  # noqa: F401
    error = import_failure(failure.value, "the diary", "hf")
    assert isinstance(error, DependencyDriftError)
    assert "lacks what the diary needs (cannot import name 'NoSuchModel' from 'lm_eval.api.model')" in str(error)
    assert str(error).endswith("(tried: >=0.1,<0.2): install 'lm-eval>=0.1,<0.2'")


def test_an_unexpected_error_outside_the_range_names_the_version(
    old_range: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert "AttributeError: no such thing" in shown
    assert f"it may come from a version that was not tried: {old_range}" in shown


def test_doctor_shows_versions_found_beside_those_tried(old_range: str) -> None:
    from personalitybench.doctor import examine

    findings = {finding.name: finding for finding in examine() if finding.area == "library"}
    assert findings["lm_eval"].ready is False
    expected = f"{installed_version('lm_eval')} (tried: >=0.1,<0.2): install 'lm-eval>=0.1,<0.2'"
    assert findings["lm_eval"].detail.startswith(expected)


@pytest.mark.model
def test_a_run_outside_the_range_records_it_in_its_board(
    old_range: str, tiny_model: Any, suite_file: Callable[[str], Any], tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from rich.console import Console

    from personalitybench.leaderboard.render import read_board
    from personalitybench.runs.command import run_suite
    from personalitybench.runs.stages import STAGES

    path = suite_file(
        f"name: x\nmodels: [{{name: {tiny_model}, args: {{dtype: float32}}}}]\nmethods: [none]\nfloors: false\n"
        "targets: ['extraversion:high', 'extraversion:low']\nquestions: {limit: 1}\nprotocol: {max_tokens: 2}\n"
    )
    with caplog.at_level(logging.WARNING, "personalitybench"):
        run_suite(str(path), tmp_path / "run", STAGES, Console(quiet=True))
    assert caplog.text.count(old_range) == 1
    board = read_board(tmp_path / "run" / "leaderboard.json")
    assert board.rows[0].provenance.untried_versions == [old_range]
