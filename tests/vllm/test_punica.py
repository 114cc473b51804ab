"""LoRA's products on CPUs, each operation that vLLM calls against one row at a time."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from personalitybench.backends.adapter_groups import Groups  # noqa: E402
from personalitybench.backends.vllm.punica import PunicaWrapper  # noqa: E402

OWN = [2, -1, 0, 2, 2, -1, 3]
ADAPTERS, RANK, READ, WIDTHS = 4, 3, 10, (6, 2, 2)


@pytest.fixture
def products() -> Any:
    made = PunicaWrapper(64, 8, device="cpu")
    made._tokens = made._sampled = Groups.of(torch.tensor(OWN))
    return made


def draw(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def each(x: Any, *matrices: Any) -> Any:
    """Products of each row with its adapter's matrices; zero without one."""
    rows = []
    for row, own in zip(x.float(), OWN, strict=True):
        for stacked in matrices:
            row = stacked[own, 0].float() @ row  # noqa: PLW2901 (through one matrix after the other)
        rows.append(row if own >= 0 else torch.zeros_like(row))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_of_a_layer(products: Any, dtype: Any) -> None:
    x, y = draw(len(OWN), READ, dtype=dtype), draw(len(OWN), sum(WIDTHS), dtype=dtype)
    down = tuple(draw(ADAPTERS, 1, RANK, READ, dtype=dtype) for _ in WIDTHS)
    up = tuple(draw(ADAPTERS, 1, width, RANK, dtype=dtype) for width in WIDTHS)
    expected = y.float() + 0.5 * torch.cat([each(x, a, b) for a, b in zip(down, up, strict=True)], dim=1)
    before = y.clone()
    products.add_lora_linear(y, x, down, up, 0.5, WIDTHS)
    torch.testing.assert_close(y, expected.to(dtype))
    assert torch.equal(y[[1, 5]], before[[1, 5]]), "to the bit without an adapter"


def test_both_products_on_their_own(products: Any) -> None:
    x, down, up = draw(len(OWN), READ), draw(ADAPTERS, 1, RANK, READ), draw(ADAPTERS, 1, 4, RANK)
    inner = torch.zeros(len(OWN), RANK)
    products.add_shrink((inner,), x, (down,), 2.0)
    torch.testing.assert_close(inner, 2 * each(x, down))
    y = draw(len(OWN), 7)
    expected = y.clone()
    expected[:, 2:6] += 2 * each(x, down, up)
    products.add_expand(y, (inner,), (up,), (4,), offset_start=2)
    torch.testing.assert_close(y, expected)


def test_the_head_and_the_embedding(products: Any) -> None:
    x, down, up = draw(len(OWN), READ), draw(ADAPTERS, 1, RANK, READ), draw(ADAPTERS, 1, 9, RANK)
    y = draw(len(OWN), 12)  # padded beyond the adapter's outputs
    expected = y.clone()
    expected[:, :9] += 0.5 * each(x, down, up)
    products.add_lora_logits(y, x, down, up, 0.5)
    torch.testing.assert_close(y, expected)
    read, whole = draw(len(OWN), RANK), draw(len(OWN), 9)
    expected = whole + each(read, up)
    products.add_lora_embedding(whole, read, up)
    torch.testing.assert_close(whole, expected)


def test_a_step_without_adapters_changes_nothing(products: Any) -> None:
    products._tokens = products._sampled = Groups.of(torch.tensor([-1] * len(OWN)))
    x, y = draw(len(OWN), READ), draw(len(OWN), 9)
    before = y.clone()
    down, up = draw(ADAPTERS, 1, RANK, READ), draw(ADAPTERS, 1, 9, RANK)
    products.add_lora_linear(y, x, (down,), (up,), 1.0, (9,))
    products.add_lora_logits(y, x, down, up, 1.0)
    assert torch.equal(y, before)
