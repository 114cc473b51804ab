"""``personalitybench judges calibrate``: how one judge is read on the scale of another, and how well that goes."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table

from personalitybench.errors import ConfigurationError
from personalitybench.judging.agreement.calibration import Calibration, Errors, fit_calibration, write_calibration
from personalitybench.runs.compare_command import CompareOptions, rate_table

_LEGEND = (
    "Mean absolute difference from the reference on questions that the map did not see, with 95 % intervals over "
    "questions. raw: unmapped. mean: if one always said the reference's mean; a map that is no better knows nothing. "
    "gained: raw - mapped."
)
_SHOWN_POINTS = 12


def calibrate_judge(options: CompareOptions, output: Path | None, console: Console) -> None:
    """Fit a monotone map from a judge to a reference, report its held-out error and write it.

    Args:
        options: The answers; of its judges the first is mapped and the second, or else the people, the reference.
        output: File of the calibration; by default ``<judge>-to-<reference>.json`` in the working directory.
        console: Where progress and tables go.

    Raises:
        PersonalityBenchError: Something is wrong; ratings that were made are kept.
    """
    if len(options.judges) < 2 and not options.human:
        raise ConfigurationError(
            f"there is nothing to calibrate {options.judges[0]!r} to: name a second judge, or the ratings of people "
            "with --human"
        )
    table = rate_table(options, console)
    if table is None:
        return
    names = [column.judge for column in table.columns]
    # With people as the reference it is their mean, where there are several; that column comes last.
    reference = names[1] if len(options.judges) > 1 else names[-1]
    calibration = fit_calibration(table, names[0], reference)
    path = output or Path(f"{names[0]}-to-{reference.replace(':', '-')}.json")
    write_calibration(calibration, path)
    console.print(_tables(calibration))
    console.print(str(path.resolve()), soft_wrap=True)


def _tables(calibration: Calibration) -> Group:
    judge, reference = calibration.judge["id"], calibration.reference["id"]
    points = Table("aspect", f"rating by {judge}", f"on the scale of {reference}", box=box.SIMPLE_HEAD)
    errors = Table(
        *("aspect", "answers", "raw", "mapped", "mean", "gained"),
        title=f"{judge} read on the scale of {reference}",
        caption=_LEGEND,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for aspect, fitted in calibration.maps.items():
        step = max(1, -(-len(fitted.points) // _SHOWN_POINTS))
        for x, y in fitted.points[::step]:
            points.add_row(aspect, f"{x:.2f}", f"{y:.2f}")
        errors.add_row(aspect, *_error_cells(fitted.errors))
        for trait, found in fitted.by_trait.items():
            errors.add_row(f"  {trait}", *_error_cells(found))
    return Group(points, errors)


def _error_cells(found: Errors) -> list[str]:
    return [
        f"{found.n:,}",
        _with_interval(found.raw, found.raw_interval),
        _with_interval(found.mapped, found.mapped_interval),
        f"{found.constant:.2f}",
        _with_interval(found.gained, found.gained_interval),
    ]


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
