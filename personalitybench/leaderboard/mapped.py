"""A board's trait scores read on the scale of another judge, by a calibration: beside its own, never instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from personalitybench.errors import ConfigurationError
from personalitybench.judging import Rating, Verdict
from personalitybench.judging.agreement.calibration import Calibration, RatingMap, read_calibration
from personalitybench.leaderboard.build import Cell, collect, composites, group_cells, row_identity
from personalitybench.leaderboard.schema import Leaderboard, Mapped, MappedTo, Row


def calibrations_of(files: Iterable[Path], judges: Sequence[Mapping[str, str]]) -> dict[str, Calibration]:
    """Read calibrations and find whose they are.

    Args:
        files: As ``personalitybench judges calibrate`` writes them.
        judges: Fingerprints of the judges whose boards are made.

    Returns:
        Calibrations by the judge's id.

    Raises:
        ConfigurationError: One is of none of these judges, of another state of it, has no map for traits, or there are
            two for one judge.
        StorageError: A file is missing or no JSON.
    """
    by_id = {judge["id"]: judge for judge in judges}
    found: dict[str, Calibration] = {}
    for path in files:
        calibration = read_calibration(path)
        judge = calibration.judge["id"]
        if judge not in by_id:
            raise ConfigurationError(
                f"{path} is a calibration of judge {judge!r}: the boards are of {', '.join(by_id)}"
            )
        calibration.check(by_id[judge])
        if judge in found:
            raise ConfigurationError(f"{path}: there are two calibrations of judge {judge!r}, and a board shows one")
        if "trait" not in calibration.maps:
            raise ConfigurationError(f"{path} has no map for trait ratings: calibrate on more answers")
        found[judge] = calibration
    return found


def with_mapped(board: Leaderboard, cells: Iterable[Cell], calibration: Calibration | None) -> Leaderboard:
    """Add mapped composites to the rows of a board.

    Args:
        board: The board.
        cells: Those that it was built from.
        calibration: Of the board's judge; None leaves the board as it is.
    """
    if calibration is None:
        return board
    fitted = calibration.maps["trait"]
    mapped = {
        Row.make_id(row_identity(group)): _figures([_read(cell, fitted) for cell in group])
        for group in group_cells(cells)
    }
    about = MappedTo(
        reference=calibration.reference,
        source=calibration.source,
        calibration_sha256=calibration.sha256,
        n=fitted.n,
        error_raw=fitted.errors.raw,
        error_mapped=fitted.errors.mapped,
        error_constant=fitted.errors.constant,
    )
    rows = [row.model_copy(update={"mapped": mapped[row.id]}) for row in board.rows]
    return board.model_copy(update={"rows": rows, "mapped_to": about})


def _read(cell: Cell, fitted: RatingMap) -> Cell:
    return replace(cell, answers=[replace(answer, trait=_verdict(answer.trait, fitted)) for answer in cell.answers])


def _verdict(verdict: Verdict, fitted: RatingMap) -> Verdict:
    return Rating(fitted.read(verdict.value)) if isinstance(verdict, Rating) else verdict


def _figures(cells: Sequence[Cell]) -> Mapped:
    traits, average = composites(collect(cells).scores)
    return Mapped(traits=traits, average=average)
