"""Prices with their date and source, and tokens guessed from above."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from personalitybench.errors import ConfigurationError
from personalitybench.judging.base import judge_names, load_profile
from personalitybench.judging.prices import Price, cost, estimate_tokens, load_prices
from personalitybench.resources import bundled

GOOD = """
date: 2026-01-31
status: published
source: the price list of a shop
prices:
  small: {input: 0.5, output: 2}
  free: {input: 0, output: 0, batch_discount: 0.5}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text)
    return path


def test_the_bundled_table_says_since_when_and_from_whom() -> None:
    table = load_prices()
    assert table.status == "reported"
    assert table.source
    assert dt.date(2026, 1, 1) < table.date <= dt.date.today()  # noqa: DTZ011 (a day, anywhere)
    assert table.about == f"prices reported {table.date}"
    for price in table.prices.values():
        assert 0 < price.input <= price.output < 1000, "dollars for a million tokens"


def test_a_price_is_of_a_model_by_its_exact_name(tmp_path: Path) -> None:
    table = load_prices(write(tmp_path, GOOD))
    assert (table.date, table.status, table.source) == (dt.date(2026, 1, 31), "published", "the price list of a shop")
    assert table.price("small") == Price(0.5, 2.0)
    assert table.price("free") == Price(0.0, 0.0, 0.5)
    assert table.price("smal") is None
    assert table.price("small-2026") is None


def test_cost_is_of_both_directions() -> None:
    price = Price(input=2.0, output=10.0)
    assert cost(price, 1_000_000, 0) == 2.0
    assert cost(price, 0, 1_000_000) == 10.0
    assert cost(price, 1_500, 30) == pytest.approx(0.0033)
    assert cost(price, 0, 0) == 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("date: 2026-01-31", "date: soon", "date"),
        ("date: 2026-01-31\n", "", "'date' is missing"),
        ("source: the price list of a shop", "source: ''", "source"),
        ("status: published", "status: rumour", "status"),
        ("input: 0.5", "input: -1", "small.input"),
        ("output: 2", "output: .nan", "small.output"),
        ("output: 2", "ouput: 2", "did you mean 'output'"),
        ("batch_discount: 0.5", "batch_discount: 50", "batch_discount"),
        (GOOD, "- a list", "is not a mapping"),
        (GOOD, "a: [", "is not YAML"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_prices(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read table of prices"):
        load_prices(tmp_path / "prices.yaml")


def test_the_table_is_not_a_judge() -> None:
    assert "offline" in judge_names()
    assert "prices" not in judge_names()
    with pytest.raises(ConfigurationError, match="unknown judge 'prices'"):
        load_profile("prices")


def test_an_estimate_grows_with_text_and_messages() -> None:
    def message(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    one = estimate_tokens([message("")])
    assert one > 0
    assert estimate_tokens([message(""), message("")]) == one + (one - estimate_tokens([]))
    assert estimate_tokens([message("a" * 3000)]) == one + 1000
    assert estimate_tokens([message("好" * 1000)]) == one + 1000, "a token for each sign of another script"
    assert estimate_tokens([message("\ud83d")]) > one


@pytest.mark.model
def test_an_estimate_is_above_what_a_tokenizer_counts(demo_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(demo_model))
    ratios = []
    for path in sorted((bundled("judges", "offline") / "answers").glob("*.jsonl")):
        for line in path.read_text().splitlines()[::20]:
            answer = json.loads(line)["answer"]
            system = {"role": "system", "content": "You rate what somebody wrote."}
            messages = [system, {"role": "user", "content": answer}]
            counted = len(tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"])
            ratios.append(estimate_tokens(messages) / counted)
    assert len(ratios) > 50
    assert min(ratios) > 1
    mean = sum(ratios) / len(ratios)
    assert mean < 2, mean
