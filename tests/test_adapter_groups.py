"""Rows grouped by adapter: whatever the mix, each row has its own adapter's product, and the others none."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from personalitybench.backends.adapter_groups import AT_ONCE, Groups  # noqa: E402

pytestmark = pytest.mark.model

MATRICES = torch.randn(6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@given(own=st.lists(st.integers(-1, 5), min_size=1, max_size=24), between=st.sampled_from([(), (2,), (2, 90)]))
@settings(deadline=None)
def test_each_row_is_multiplied_by_its_own_matrix(own: list[int], between: tuple[int, ...]) -> None:
    groups = Groups.of(torch.tensor(own))
    adapted = [row for row, number in enumerate(own) if number >= 0]
    if groups is None:
        assert not adapted
        return
    draw = torch.Generator().manual_seed(len(own))
    x = torch.randn(len(own), *between, 5, dtype=torch.float64, generator=draw)
    result = torch.randn(len(own), *between, 3, dtype=torch.float64, generator=draw)
    matrices = MATRICES[groups.first : groups.first + groups.count]
    expected = torch.stack(
        [x[row] @ MATRICES[number] if number >= 0 else 0 * result[row] for row, number in enumerate(own)]
    )
    added, written = result.clone(), torch.zeros_like(result)
    for part in groups.parts(x):
        part.put(part.read @ matrices[part.groups], added)
        part.put(part.read @ matrices[part.groups], written, add=False)
    torch.testing.assert_close(added, result + expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(written, expected, rtol=1e-12, atol=1e-12)


def test_little_is_multiplied_at_once_and_much_group_by_group() -> None:
    groups = Groups.of(torch.tensor([3, 1, 3, -1, 3]))
    assert groups is not None
    assert (groups.first, groups.count) == (1, 3)
    assert [part.read.shape for part in groups.parts(torch.zeros(5, 1, 7))] == [(3, 3, 7)]
    assert [part.read.shape for part in groups.parts(torch.zeros(5, AT_ONCE, 7))] == [
        (1, AT_ONCE, 7),
        (1, 3 * AT_ONCE, 7),
    ]


@pytest.mark.parametrize("between", [1, AT_ONCE])
def test_a_row_without_an_adapter_is_neither_read_nor_written(between: int) -> None:
    groups = Groups.of(torch.tensor([-1, 1, -1, 4]))
    assert groups is not None
    x = torch.tensor([float("nan"), 1.0, float("inf"), 2.0])[:, None, None].repeat(1, between, 1)
    result = torch.zeros(4, between, 1)
    for part in groups.parts(x):
        assert part.read.isfinite().all()
        part.put(part.read, result)
    assert result[:, 0, 0].tolist() == [0.0, 1.0, 0.0, 2.0]
