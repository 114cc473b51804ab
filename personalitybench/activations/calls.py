"""One call of a transformers model, read by structure: tokens, cached columns, padding and positions.

Steering and counting use it. Argument names of ``forward`` change between releases of transformers, so a value is
found by its type, shape and content; a name only decides between values that are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from personalitybench.versions import drift_error


class ModelCall:
    """The arguments of one forward call.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Attributes:
        tokens: Input of the input embedding, int64 [rows, columns]; None before it ran, and where the call brings
            embedded inputs.
        ambiguous: True where the embedding got other tokens of the same shape in the same call.
        cached_columns: Columns that the call's cache holds before it; None where no argument tells.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._values = [("", value) for value in args] + list(kwargs.items())
        self.tokens: Tensor | None = None
        self.ambiguous = False
        self.cached_columns = self._cached_columns()  # at once: the layers add to the cache

    def note_tokens(self, tokens: Tensor) -> None:
        """Take the input of the input embedding; the first of a call counts."""
        if self.tokens is None:
            self.tokens = tokens
        elif tokens.shape == self.tokens.shape and not torch.equal(tokens, self.tokens):
            self.ambiguous = True

    def require_tokens(self, rows: int, columns: int, purpose: str) -> Tensor:
        """Return the call's tokens, int64 [rows, columns].

        Raises:
            DependencyDriftError: They are not known; ``purpose`` says for what they are needed.
        """
        tokens = self.tokens
        if self.ambiguous or tokens is None or tuple(tokens.shape) != (rows, columns):
            got = "several batches of tokens" if self.ambiguous else "nothing" if tokens is None else describe(tokens)
            raise drift_error(
                "transformers", f"gave the input embedding {got} instead of [{rows}, {columns}] tokens, so {purpose}"
            )
        return tokens

    def padding_mask(self, rows: int, width: int) -> Tensor | None:
        """Return the padding mask, bool [rows, width]: true where there is a token; None where the call has none.

        It is the two-dimensional argument of this shape that holds zeros and ones, a one in every row, and does not
        count. Only where several such arguments differ, the name decides.

        Raises:
            DependencyDriftError: Several arguments could be it, and none is called ``attention_mask``.
        """
        found = {
            name: value.bool().expand(rows, -1)
            for name, value in self._integers(rows, width)
            if bool(((value == 0) | (value == 1)).all())
            and bool((value == 1).any(1).all())
            and ("mask" in name or not _counts(value, width))
        }
        return _the_one(found, "attention_mask", "padding mask")

    def positions(self, rows: int, start: int, columns: int) -> Tensor | None:
        """Return the tokens' positions without padding, int64 [rows, columns]; None where the call has none.

        It is the two-dimensional argument of this shape that counts up to its last column, and no further than the
        columns do. Equal rows tell of no padding, so of several rows they count only by name.

        Raises:
            DependencyDriftError: Several arguments could be it, and none is called ``position_ids``.
        """
        found = {
            name: value.long()
            for name, value in self._integers(rows, columns)
            if value.shape[0] == rows
            and "mask" not in name
            and _counts(value, start + columns)
            and (rows == 1 or "position" in name or bool((value != value[:1]).any()))
        }
        return _the_one(found, "position_ids", "positions")

    def widest(self, rows: int) -> int:
        """Columns of the widest two-dimensional integer argument; 0 where there is none."""
        return max((value.shape[1] for _, value in self._integers(rows, None)), default=0)

    def _cached_columns(self) -> int | None:
        for _, value in self._values:
            length = getattr(value, "get_seq_length", None)
            if callable(length):
                try:
                    return int(length())
                except (TypeError, ValueError, RuntimeError):  # it tells in another way: columns are counted
                    return None
        return None

    def _integers(self, rows: int, width: int | None) -> Iterator[tuple[str, Tensor]]:
        """Yield the integer and bool arguments [rows or 1, width] but the tokens."""
        for name, value in self._values:
            if not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point():
                continue
            is_tokens = self.tokens is not None and value.shape == self.tokens.shape and torch.equal(value, self.tokens)
            if value.shape[0] in {1, rows} and width in {None, value.shape[1]} and not is_tokens:
                yield name, value


def _the_one(found: Mapping[str, Tensor], usual_name: str, meaning: str) -> Tensor | None:
    """Return the value on which all candidates agree, or else that of the usual name."""
    values = list(found.values())
    if not values or all(torch.equal(value, values[0]) for value in values):
        return values[0] if values else None
    if usual_name not in found:
        raise drift_error("transformers", f"passes several arguments that could be the {meaning}: {', '.join(found)}")
    return found[usual_name]


def _counts(value: Tensor, end: int) -> bool:
    """Tell positions from other integers: each row counts up to its last column, or has one token; below ``end``."""
    last = value[:, -1].long()
    previous = last - 1 if value.shape[1] == 1 else value[:, -2].long()
    return bool((((last - previous == 1) | (last == 0)) & (last >= 0) & (last < end)).all())


@contextmanager
def followed(model: nn.Module, begin: Callable[[ModelCall], None]) -> Iterator[None]:
    """Announce every forward call of a model while the block runs.

    Args:
        model: A causal language model of transformers.
        begin: Called with each call before it runs. The call's ``tokens`` come while it runs, before the first layer.

    Raises:
        DependencyDriftError: The model does not name its input embedding.
    """
    current: list[ModelCall] = []

    def before_model(_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = ModelCall(args, kwargs)
        current[:] = [call]
        begin(call)

    def before_embedding(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and current and value.dim() == 2 and not value.is_floating_point():
                current[0].note_tokens(value)
                return

    handles = []
    try:
        try:
            handles.append(model.register_forward_pre_hook(before_model, with_kwargs=True))
            handles.append(input_embedding(model).register_forward_pre_hook(before_embedding, with_kwargs=True))
        except TypeError as error:
            raise drift_error("torch", f"registers forward hooks in another way ({error})") from error
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_embedding(model: Any) -> nn.Module:
    """Return the module that embeds a model's input tokens.

    Raises:
        DependencyDriftError: The model does not name one.
    """
    accessor = getattr(model, "get_input_embeddings", None)
    module = accessor() if callable(accessor) else None
    if not isinstance(module, nn.Module):
        raise drift_error("transformers", f"names no input embedding in {type(model).__name__}")
    return module


def run_forward(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    """Read tokens in one forward pass without a cache.

    Args:
        model: A causal language model of transformers.
        ids: Tokens, int64 [rows, columns].
        mask: 1 where there is a token, int64 [rows, columns].
        options: Further arguments of ``forward``.

    Raises:
        DependencyDriftError: The model refuses the call.
    """
    try:
        return model(ids, attention_mask=mask, use_cache=False, **options)
    except (TypeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise drift_error("transformers", f"refuses a forward call of {type(model).__name__} ({first})") from error


def output_logits(output: Any, model: Any) -> Tensor:
    """Return the logits of a model's output, float [rows, columns, vocabulary], by field or else by shape.

    Raises:
        DependencyDriftError: The output has no logits.
    """
    found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        width = getattr(getattr(model, "config", None), "vocab_size", None)
        parts = output if isinstance(output, (tuple, list)) else (output,)
        found = next(
            (part for part in parts if isinstance(part, Tensor) and part.dim() == 3 and part.shape[-1] == width), None
        )
    if found is None or found.dim() != 3:
        raise drift_error("transformers", f"gives no logits: {type(model).__name__} returned {describe(output)}")
    return found


def generated_sequences(output: Any, prompts: Tensor) -> Tensor:
    """Return the sequences that ``generate`` gave, int64 [rows, columns], which begin with the prompts.

    Args:
        output: What it returned: the sequences, or an object that holds them.
        prompts: What it was given, int64 [rows, prompt columns].

    Raises:
        DependencyDriftError: The output holds no such sequences.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise drift_error("transformers", f"gives no sequences: generate returned {describe(output)}")
    width = prompts.shape[1]
    if found.shape[0] != prompts.shape[0] or not torch.equal(found[:, :width], prompts.to(found.device)):
        raise drift_error("transformers", f"gives sequences {list(found.shape)} that do not begin with the prompts")
    return found


def describe(value: Any) -> str:
    """Write a value's type, and its shape where it has one, for errors."""
    return f"a {type(value).__name__}" + (f" of shape {list(value.shape)}" if isinstance(value, Tensor) else "")
