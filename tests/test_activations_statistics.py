"""Statistics of gate activations: exact counts, quantiles within their bound, errors, files, and which tokens count."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from personalitybench.activations import statistics  # noqa: E402
from personalitybench.activations.bins import rank_of_quantile  # noqa: E402
from personalitybench.activations.statistics import (  # noqa: E402
    Bins,
    GateStatistics,
    StatisticsBuilder,
    StatisticsSource,
    memory_bytes,
)
from personalitybench.errors import (  # noqa: E402
    ConfigurationError,
    DataError,
    ModelError,
)
from tests.made_up import SOURCE  # noqa: E402

PRESETS = [Bins.default(), Bins.paper_code()]
NAMES = ["default", "paper_code"]
LOW = SOURCE.model_copy(update={"target": "extraversion:low"})


def count(
    activations: Any, shards: Any, *, bins: Bins | None = None, many: int = 4, source: StatisticsSource = SOURCE
) -> GateStatistics:
    """Statistics of activations [tokens, layers, neurons], whose tokens are of the given shards."""
    builder = StatisticsBuilder(activations.shape[1], activations.shape[2], many, bins)
    for layer in range(activations.shape[1]):
        builder.add(layer, activations[:, layer], torch.as_tensor(shards, dtype=torch.int64))
    return builder.build(source, np.bincount(shards, minlength=many).tolist())


def sample(tokens: int = 60, layers: int = 2, neurons: int = 5, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.silu(torch.randn(tokens, layers, neurons, generator=generator))


def gate_like(kind: str, tokens: int = 3000, neurons: int = 64) -> Any:
    """Activations as models have them: neurons of different scale and shift, through SiLU or tanh-GELU."""
    generator = torch.Generator().manual_seed(7)
    scale = torch.exp(torch.randn(neurons, generator=generator) * 1.2 - 1)
    shift = torch.randn(neurons, generator=generator) * scale
    before = torch.randn(tokens, neurons, generator=generator) * scale + shift
    if kind == "heavy tail":
        return torch.exp(torch.randn(tokens, neurons, generator=generator) * 2 - 2) * (before > 0)
    if kind == "gelu":
        return torch.nn.functional.gelu(before, approximate="tanh")
    value = torch.nn.functional.silu(before)
    return value.bfloat16() if kind == "bfloat16" else value


# Bins


@pytest.mark.parametrize("bins", PRESETS, ids=NAMES)
def test_a_value_lies_in_the_bin_that_is_open_on_the_left(bins: Bins) -> None:
    edges = bins.edges
    assert edges[0] == 0
    assert (np.diff(edges) > 0).all()
    inner = torch.tensor(edges[1:])
    above = torch.nextafter(inner, torch.tensor(torch.inf))
    assert bins.index(inner).tolist() == list(range(bins.count - 1))
    assert bins.index(above).tolist() == list(range(1, bins.count))
    assert bins.index(torch.tensor([1e-45, 3e38, -0.0, -1.0, -1e-45])).tolist() == [0, bins.count - 1, 0, 0, 0]


@pytest.mark.parametrize("bins", PRESETS, ids=NAMES)
@given(values=st.lists(st.floats(width=32, min_value=0, exclude_min=True, allow_infinity=False), max_size=30))
def test_bins_agree_with_a_search_among_the_edges(bins: Bins, values: list[float]) -> None:
    wanted = np.searchsorted(bins.edges, np.array(values, dtype=np.float32), side="left") - 1
    assert bins.index(torch.tensor(values, dtype=torch.float32)).tolist() == wanted.tolist()


def test_the_presets_are_what_they_say() -> None:
    released = Bins.paper_code()
    assert released.count + 1 == 301
    assert released.edges[-1] == np.float32(2.99)
    assert released.reading == "left-edge"
    own = Bins.default()
    assert own.count == 242
    assert (own.edges[1], own.edges[-1]) == (2**-10, 32)
    assert (np.diff(own.edges[1:]) / own.edges[1:-1]).max() == 1 / 16


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 3.0, "stop": 6.0},
        {"resolution": 12},
        {"resolution": 0},
        {"start": 0.0},
        {"stop": float("nan")},
        {"spacing": "linear"},
        {"start": 4.0, "stop": 2.0},
    ],
)
def test_bins_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    given = {"spacing": "octaves", "resolution": 16, "start": 1.0, "stop": 8.0, "reading": "interpolated", **wrong}
    with pytest.raises(ConfigurationError, match="bins from"):
        Bins(**given)


@given(q=st.integers(1, 100), values=st.integers(0, 10**9))
def test_the_rank_is_that_of_the_decimal_not_of_the_float(q: int, values: int) -> None:
    assert rank_of_quantile(q / 100, values) == -(-q * values // 100)


# Quantiles


@pytest.mark.parametrize("kind", ["silu", "gelu", "heavy tail", "bfloat16"])
@pytest.mark.parametrize("q", [0.5, 0.95, 0.999])
def test_the_quantile_keeps_the_bound_that_is_stated(kind: str, q: float) -> None:
    activations = gate_like(kind)
    exact = np.quantile(activations.float().numpy(), q, axis=0, method="inverted_cdf")
    read = count(activations[:, None], np.zeros(len(activations), dtype=int)).quantile(q)[0]
    inside = (exact > 2**-10) & (exact <= 32)
    assert inside.sum() > 15
    relative = np.abs(read - exact)[inside] / exact[inside]
    assert relative.max() < 1 / 16
    assert np.abs(read - exact)[(exact > 0) & (exact <= 2**-10)].max(initial=0) < 2**-10
    assert (read[exact > 32] == 32).all()
    assert (read[exact <= 0] == 0).all()
    if q != 0.999:  # there only three values are above the quantile
        assert np.median(relative) < 0.005


def test_the_default_is_nearer_to_the_exact_quantile_than_the_released_reading() -> None:
    activations = gate_like("silu")
    exact = np.quantile(activations.numpy(), 0.95, axis=0, method="inverted_cdf")
    usual = (exact > 0.05) & (exact < 2.99)  # where the released bins reach
    assert usual.sum() > 30
    error = {}
    for name, bins in zip(NAMES, PRESETS, strict=True):
        read = count(activations[:, None], np.zeros(len(activations), dtype=int), bins=bins).quantile()[0]
        error[name] = np.median((np.abs(read - exact) / exact)[usual])
    assert error["default"] < error["paper_code"] / 3


def released_a95(values: npt.NDArray[np.float32], q: float) -> float:
    """The released procedure, slowly: cumulative counts over (-inf, 0], (0, 0.01], ..., (2.99, inf)."""
    upper = np.float32([0.0, *(k / 100 for k in range(1, 300)), np.inf])
    lower = np.float32([-np.inf, *upper[:-1]])
    seen = 0
    for left, right in zip(lower, upper, strict=True):
        seen += int(((values > left) & (values <= right)).sum())
        if seen >= round(q * len(values), 9):
            return float(left)
    raise AssertionError


def test_released_bins_read_as_the_released_procedure() -> None:
    activations = gate_like("silu", tokens=400)
    activations[:, 0] = -0.1  # never active: the released code gives minus infinity
    activations[:, 1] = 5.0  # beyond the last edge
    read = count(activations[:, None], np.zeros(400, dtype=int), bins=Bins.paper_code())
    wanted = [released_a95(column, 0.95) for column in activations.numpy().T]
    assert wanted[:2] == [-np.inf, float(np.float32(2.99))]
    assert read.quantile(floor=-np.inf)[0].tolist() == wanted
    assert np.isfinite(read.quantile()).all()


@pytest.mark.parametrize("q", [0, 1.5, float("nan")])
def test_a_quantile_out_of_range_is_refused(q: float) -> None:
    with pytest.raises(ConfigurationError, match="above 0 and at most 1"):
        count(sample(), np.zeros(60, dtype=int)).quantile(q)


# Counting


@pytest.mark.parametrize("bins", PRESETS, ids=NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counts_are_those_of_a_slow_direct_count(bins: Bins, dtype: str) -> None:
    activations = (sample(400, 2, 70) * 3).to(getattr(torch, dtype))
    activations[0, 0, 0] = 0.0
    shards = np.arange(400) // 100
    got = count(activations, shards, bins=bins)
    values = activations.float().numpy()
    assert got.tokens.tolist() == [100] * 4
    for shard in range(4):
        assert (got.active[shard] == (values[shards == shard] > 0).sum(axis=0)).all()
    for layer in range(2):
        for neuron in range(70):
            column = values[:, layer, neuron]
            wanted, _ = np.histogram(-column[column > 0], bins=-np.append(bins.edges, np.inf)[::-1])
            assert got.histogram[layer, neuron].tolist() == wanted[::-1].tolist()
    assert (got.probability() == (values > 0).mean(axis=0)).all()


def test_blocks_and_a_shard_for_all_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    activations = sample(100, 1, 300)
    wanted = count(activations, np.full(100, 2))
    monkeypatch.setattr(statistics, "BLOCK", (7, 13))
    builder = StatisticsBuilder(1, 300, 4)
    for rows in activations[:, 0].split(33):
        builder.add(0, rows, 2)
    builder.add(0, activations[:0, 0], 1)
    got = builder.build(SOURCE, [0, 0, 100, 0])
    assert got.tokens.tolist() == [0, 0, 100, 0]
    assert (got.active == wanted.active).all()
    assert (got.histogram == wanted.histogram).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), preset=st.sampled_from(PRESETS))
def test_parts_added_are_the_whole(data: st.DataObject, preset: Bins, tmp_path_factory: Any) -> None:
    tokens = data.draw(st.integers(1, 30))
    values = data.draw(st.lists(st.floats(-4, 40, width=32), min_size=tokens * 6, max_size=tokens * 6))
    shards = np.array(data.draw(st.lists(st.integers(0, 3), min_size=tokens, max_size=tokens)))
    part = np.array(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    activations = torch.tensor(values).reshape(tokens, 2, 3)
    whole = count(activations, shards, bins=preset)
    first, second = (count(activations[mask], shards[mask], bins=preset) for mask in (part, ~part))
    for merged in (first + second, second + first):
        assert merged.manifest == whole.manifest
        assert (merged.active == whole.active).all()
        assert (merged.histogram == whole.histogram).all()
        assert (merged.quantile() == whole.quantile()).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "other"),
        ("revision", "def"),
        ("target", "extraversion:low"),
        ("wording_sha256", "1" * 64),
        ("data_revision", "d2"),
        ("seeds", {"questions": 1}),
        ("token_rule", "released-code"),
        ("counted_in", "decoding"),
    ],
)
def test_parts_of_different_runs_are_not_added(field: str, value: Any) -> None:
    shards = np.arange(60) % 4
    other = SOURCE.model_copy(update={field: value})
    with pytest.raises(ConfigurationError, match=f"cannot add statistics whose {field} differs") as error:
        _ = count(sample(), shards) + count(sample(), shards, source=other)
    assert repr(value) in str(error.value)


def test_parts_of_different_shape_or_bins_are_not_added() -> None:
    shards = np.arange(60) % 4
    one = count(sample(), shards)
    with pytest.raises(ConfigurationError, match="bins differs"):
        _ = one + count(sample(), shards, bins=Bins.paper_code())
    with pytest.raises(ConfigurationError, match="shards differs: 4 and 5"):
        _ = one + count(sample(), shards, many=5)
    with pytest.raises(ConfigurationError, match="neurons differs: 5 and 6"):
        _ = one + count(sample(neurons=6), shards)
    with pytest.raises(TypeError):
        _ = one + 1  # type: ignore[operator]


def test_few_tokens_at_a_time_count_like_all_at_once() -> None:
    """Tokens wait until there are enough to count: nothing of them is missing from what is asked for in between."""
    activations = sample(tokens=700)
    shards = torch.arange(700) % 4
    whole = count(activations, shards.numpy())
    builder = StatisticsBuilder(2, 5, 4)
    builder.add(0, activations[:9, 0], 3)
    builder.clear()
    for start in range(0, 700, 7):
        given = activations[start : start + 7]
        for layer in range(2):
            builder.add(layer, given[:, layer], shards[start : start + 7])
        given.fill_(-1.0)  # what was added is the caller's to change
        if start == 70:
            active, histogram = builder.counts
            assert int(active.sum()) == int(histogram.sum()) > 0
            assert active.sum(dim=(1, 2)).count_nonzero() == 4
    found = builder.build(SOURCE, whole.manifest.questions)
    assert found.manifest == whole.manifest
    assert (found.active == whole.active).all()
    assert (found.histogram == whole.histogram).all()


def test_counts_never_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.iinfo(torch.int32).max == statistics.LARGEST_COUNT
    monkeypatch.setattr(statistics, "LARGEST_COUNT", 100)
    builder = StatisticsBuilder(1, 5, 2)
    builder.add(0, sample(100, 1)[:, 0], 0)
    with pytest.raises(ConfigurationError, match="layer 0: 101 tokens are more than int32 counts hold"):
        builder.add(0, sample(1, 1)[:, 0], 1)
    full = builder.build(SOURCE, [1, 0])
    assert full.tokens.tolist() == [100, 0]
    with pytest.raises(ConfigurationError, match="200 tokens are more"):
        _ = full + full


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_that_are_no_numbers_are_refused_and_not_counted(bad: float, dtype: str) -> None:
    activations = sample(20, 1)[:, 0].to(getattr(torch, dtype))
    activations[3, 4] = bad
    builder = StatisticsBuilder(1, 5, 2)
    with pytest.raises(ModelError, match="layer 0: the activations hold NaN or infinity"):
        builder.add(0, activations, 0)
    built = builder.build(SOURCE, [0, 0])
    assert not built.active.any()
    assert not built.histogram.any()
    with pytest.raises(DataError, match="no token was counted"):
        built.probability()
    with pytest.raises(DataError, match="no token was counted"):
        built.quantile()


@pytest.mark.parametrize(
    ("layer", "shape", "dtype", "shard", "message"),
    [
        (2, (3, 5), "float32", 0, "layer 2: the statistics have layers 0 to 1"),
        (-1, (3, 5), "float32", 0, "layer -1"),
        (0, (3, 4), "float32", 0, r"\[3, 4\], the statistics need float32 or bfloat16 \[tokens, 5\]"),
        (0, (1, 3, 5), "float32", 0, r"\[1, 3, 5\]"),
        (0, (3, 5), "int64", 0, "torch.int64"),
        (0, (3, 5), "float32", 4, "shards 4 to 4, there are 4"),
        (0, (3, 5), "float32", -1, "shards -1"),
        (0, (3, 5), "float32", [0, 1, 9], "shards 0 to 9, there are 4"),
        (0, (3, 5), "float32", [0, 1], r"give one number or int64 \[3\]"),
    ],
)
def test_what_does_not_fit_is_refused(layer: int, shape: Any, dtype: str, shard: Any, message: str) -> None:
    builder = StatisticsBuilder(2, 5, 4)
    with pytest.raises(ConfigurationError, match=message):
        builder.add(
            layer,
            torch.ones(shape, dtype=getattr(torch, dtype)),
            shard if isinstance(shard, int) else torch.tensor(shard),
        )
    assert not builder.build(SOURCE, [0] * 4).active.any()


def test_a_layer_that_was_left_out_is_known() -> None:
    builder = StatisticsBuilder(3, 5, 2)
    for layer in (0, 1):
        builder.add(layer, sample(6, 1)[:, 0], 0)
    with pytest.raises(ModelError, match="layer 0: 6, layer 2: 0"):
        builder.build(SOURCE, [1, 0])
    builder.add(2, sample(6, 1)[:, 0], 0)
    with pytest.raises(ConfigurationError, match="questions of 3 shards"):
        builder.build(SOURCE, [1, 0, 0])
    builder.build(SOURCE, [1, 0])
    with pytest.raises(ConfigurationError, match="are built"):
        builder.add(0, sample(6, 1)[:, 0], 0)


def test_llama_3_8b_stays_under_a_gigabyte_a_target() -> None:
    sizes = {name: memory_bytes(32, 14_336, 20, bins) for name, bins in zip(NAMES, PRESETS, strict=True)}
    assert {name: round(size / 1e6) for name, size in sizes.items()} == {"default": 481, "paper_code": 587}
    assert max(sizes.values()) < 1e9
    built = count(sample(), np.arange(60) % 4)
    assert built.active.nbytes + built.histogram.nbytes == memory_bytes(2, 5, 4, Bins.default())


def test_counts_cannot_be_changed_by_mistake() -> None:
    built = count(sample(), np.arange(60) % 4)
    with pytest.raises(ValueError, match="read-only"):
        built.active[0] = 1
    with pytest.raises(DataError, match=r"active is int32 \[3, 2, 5\], the manifest says int32 \[4, 2, 5\]"):
        GateStatistics(built.manifest, built.active[:3], built.histogram)


# Errors of a difference


def test_the_jackknife_is_that_of_the_definition() -> None:
    shards = np.repeat(np.arange(4), [10, 20, 15, 15])
    high, low = sample(seed=1), sample(seed=2) - 0.2
    got = count(high, shards, many=6).jackknife_error_of_difference(count(low, shards, many=6, source=LOW))
    left_out = np.array(
        [
            (high[shards != s] > 0).double().mean(0).numpy() - (low[shards != s] > 0).double().mean(0).numpy()
            for s in range(4)  # the empty shards 4 and 5 are passed over
        ]
    )
    wanted = np.sqrt(3 / 4 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    assert np.allclose(got, wanted, rtol=1e-9, atol=1e-15)
    assert (got > 0).all()


def test_the_jackknife_is_near_the_true_error_of_dependent_tokens() -> None:
    generator = torch.Generator().manual_seed(3)
    neurons, answers, length = 400, 20, 30
    drift = torch.randn(2, answers, 1, neurons, generator=generator)  # what the tokens of an answer share
    values = drift + torch.randn(2, answers, length, neurons, generator=generator)
    high, low = (pole.reshape(answers * length, 1, neurons) for pole in values)
    shards = np.repeat(np.arange(answers), length)
    first, second = count(high, shards, many=20), count(low, shards, many=20, source=LOW)
    error = first.jackknife_error_of_difference(second)
    true = (first.probability() - second.probability()).std()  # the neurons are alike: each is one repetition
    independent = np.sqrt(2 * 0.25 / (answers * length))
    assert 0.85 < np.sqrt((error**2).mean()) / true < 1.15
    assert true > 2 * independent


def test_a_jackknife_that_means_nothing_is_refused() -> None:
    shards = np.arange(60) % 4
    high = count(sample(), shards)
    with pytest.raises(DataError, match="at least two shards"):
        count(sample(), np.zeros(60, dtype=int)).jackknife_error_of_difference(
            count(sample(), np.zeros(60, dtype=int), source=LOW)
        )
    with pytest.raises(DataError, match="at least two shards"):
        high.jackknife_error_of_difference(count(sample(), np.zeros(60, dtype=int), source=LOW))
    with pytest.raises(ConfigurationError, match="cannot compare statistics whose revision differs"):
        high.jackknife_error_of_difference(count(sample(), shards, source=LOW.model_copy(update={"revision": "other"})))
