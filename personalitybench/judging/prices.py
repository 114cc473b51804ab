"""What ratings by a chat model cost: a dated table of prices, and tokens guessed before anything is sent.

Tokens that a server counted are stored with each reply; a price is put to them when a cost is shown.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.outside_files import load_yaml
from personalitybench.resources import bundled
from personalitybench.validation import validate

PRICES = ("judges", "prices", "table.yaml")

_BYTES_OF_TOKEN = 3
_TOKENS_OF_MESSAGE = 8  # role, separators
_TOKENS_OF_REPLY = 4  # what opens the reply


@dataclass(frozen=True)
class Price:
    """What a model costs.

    Attributes:
        input: US dollars per million tokens sent.
        output: US dollars per million tokens written.
        batch_discount: Share that a batch costs less (0.5: half); None where it is not known.
    """

    input: float
    output: float
    batch_discount: float | None = None


@dataclass(frozen=True)
class PriceTable:
    """Prices of one day.

    Attributes:
        date: When they were looked up.
        status: ``published`` (by the seller) or ``reported`` (by others, not verified).
        source: Where they were found.
    """

    date: dt.date
    status: Literal["published", "reported"]
    source: str
    prices: Mapping[str, Price]

    def price(self, model: str) -> Price | None:
        """Give the price of a model, by its exact name; None: no price is known, which is not a price of 0."""
        return self.prices.get(model)

    @property
    def about(self) -> str:
        """What a reader of a cost must know, as a few words: ``prices reported 2026-11-22``."""
        return f"prices {self.status} {self.date.isoformat()}"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    batch_discount: float | None = Field(default=None, ge=0, le=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    date: dt.date
    status: Literal["published", "reported"]
    source: str = Field(min_length=1)
    prices: dict[str, _Entry]


def load_prices(path: Path | None = None) -> PriceTable:
    """Load a table of prices.

    Args:
        path: A YAML file like ``judges/prices/table.yaml``; by default that one.

    Raises:
        ConfigurationError: The file is missing or wrong.
    """
    path = path or bundled(*PRICES)
    table = validate(_File, load_yaml(path, "table of prices"), f"prices {path}")
    prices = {model: Price(**entry.model_dump()) for model, entry in table.prices.items()}
    return PriceTable(table.date, table.status, table.source, prices)


def cost(price: Price, prompt_tokens: int, completion_tokens: int) -> float:
    """US dollars for tokens, without any discount."""
    return (price.input * prompt_tokens + price.output * completion_tokens) / 1_000_000


def estimate_tokens(messages: Iterable[Mapping[str, str]]) -> int:
    """Guess from above how many tokens a request sends, without a tokenizer. An estimate: say so wherever it is shown.

    The rule: a token for every three bytes of UTF-8, eight for each message and four for the opening of the reply.
    English prose has four to five bytes a token, so that the guess is 1.3 to 1.6 times too high; a Chinese character
    (three bytes) counts as a token. It is no bound: letters in no order can take a token for every one or two bytes.
    """
    total = _TOKENS_OF_REPLY
    for message in messages:
        size = len(message["content"].encode("utf-8", "surrogatepass"))
        total += _TOKENS_OF_MESSAGE + -(-size // _BYTES_OF_TOKEN)
    return total
