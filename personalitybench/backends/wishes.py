"""What a request asks of a backend besides reading its prompt; both backends read it from the same place.

A request carries it in ``extra_args["personalitybench"]``: in lm-eval's ``gen_kwargs``, and from there, unchanged, in
vLLM's ``SamplingParams.extra_args``.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from personalitybench.errors import ConfigurationError

logger = logging.getLogger(__name__)

KEY = "personalitybench"


@dataclass(frozen=True)
class Wish:
    """Which adapter one request is answered with, how it is steered, and whether its activations are counted.

    Attributes:
        adapter: Folder of a LoRA adapter as peft saves it, or None.
        adapter_strength: What its scale is multiplied by.
        intervention: Folder of the intervention, or None.
        strength: What its additions are multiplied by.
        keep: Share of the additions that stay at each step (released code: 0.9).
        seed: Of that draw.
        first_token: Whether the last prompt token is edited too, so that the first answer token is steered.
        shard: In which part of the statistics the tokens of its answer are counted, or None.
        answer_from: Position of the first answer token, for a request whose prompt holds an answer already; by
            default the length of the prompt.
    """

    adapter: Path | None = None
    adapter_strength: float = 1.0
    intervention: Path | None = None
    strength: float = 0.0
    keep: float = 1.0
    seed: int = 0
    first_token: bool = False
    shard: int | None = None
    answer_from: int | None = None

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter takes part in the answer; one at strength zero does not."""
        return self.adapter is not None and self.adapter_strength != 0

    @classmethod
    def parse(cls, extra_args: Mapping[str, Any] | None) -> Self | None:
        """Read a request's wish; None if it has none.

        Raises:
            ConfigurationError: An unknown key, or a value of the wrong kind.
        """
        wanted = (extra_args or {}).get(KEY)
        if not wanted:
            return None
        if not isinstance(wanted, Mapping):
            raise ConfigurationError(f"extra_args[{KEY!r}] must be a mapping, not {type(wanted).__name__}")
        unknown = sorted(set(wanted) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ConfigurationError(f"extra_args[{KEY!r}] cannot hold {', '.join(unknown)}; it may hold {known}")
        if "intervention" in wanted and wanted.get("strength") is None:
            raise ConfigurationError(f"extra_args[{KEY!r}] names an intervention without a strength: add 'strength'")
        try:
            return cls(
                adapter=Path(wanted["adapter"]) if wanted.get("adapter") else None,
                adapter_strength=_number("adapter_strength", wanted.get("adapter_strength", 1.0)),
                intervention=Path(wanted["intervention"]) if wanted.get("intervention") else None,
                strength=_number("strength", wanted.get("strength") or 0.0),
                keep=_number("keep", wanted.get("keep", 1.0), 0.0, 1.0),
                seed=int(wanted.get("seed", 0)),
                first_token=bool(wanted.get("first_token", False)),
                shard=_index("shard", wanted.get("shard")),
                answer_from=_index("answer_from", wanted.get("answer_from")),
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"extra_args[{KEY!r}] is not understood: {error}") from error

    def salt(self, sha256: str, prompt_tokens: int) -> str:
        """Name the keys and values that a steered request leaves in a cache: the same name, the same values.

        A prompt that holds an earlier steered answer is read unsteered, so the first edited position is part of it.

        Args:
            sha256: Of the intervention; a folder may be written anew.
            prompt_tokens: Length of the prompt.
        """
        first = prompt_tokens if self.answer_from is None else self.answer_from
        draw = (self.keep, self.seed) if self.keep < 1 else ()
        about = (sha256, self.strength, first - int(self.first_token), *draw)
        return hashlib.sha256("\0".join(map(str, about)).encode()).hexdigest()


@cache
def warn_of_strength_zero(intervention: str) -> None:
    """Say that an intervention at strength 0 adds nothing, once for each folder."""
    logger.warning("%s at strength 0 adds nothing: only its clamps, if it has any, change answers", intervention)


def _number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} is {value!r}")
    return number


def _index(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if int(value) != value or value < 0:
        raise ValueError(f"{name} is {value!r}, not a position")
    return int(value)
