"""Steering on transformers: interventions applied while a batch of answers is generated. The reference for vLLM.

A row of the batch gets its own intervention at its own strength. What is edited is decided by absolute position, not
by the size of a step: the inputs of the steps after the prompt, so that the first answer token, which comes from the
prompt, is unsteered as in the paper's code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from personalitybench.activations.calls import ModelCall, describe, followed
from personalitybench.activations.interventions import Intervention, check_strength
from personalitybench.activations.layouts import Gates, GateSite
from personalitybench.activations.masks import WORD, hash_words
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError
from personalitybench.versions import drift_error

Row = tuple[Intervention, float] | None
T = TypeVar("T", bool, int, float)

_steered_modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def keep_mask(seed: Tensor, position: Tensor, layer: int, neurons: int, keep: float | Tensor) -> Tensor:
    """Which neurons a step raises, when a random part of them is left out.

    A neuron stays where :func:`~personalitybench.activations.masks.hash_words` is below ``keep * 2^32``.

    Args:
        seed: int64 [...], of the row.
        position: int64 [...], of the token in its sequence, padding not counted.
        layer: Layer, from 0.
        neurons: Neurons of the layer.
        keep: Share of the neurons that stay, 0 to 1; or, where rows differ in it, int64 [...]: the share times 2^32.

    Returns:
        bool [..., neurons].
    """
    limit = keep.unsqueeze(-1) if isinstance(keep, Tensor) else int(keep * (WORD + 1))
    numbers = torch.arange(neurons, dtype=torch.int64, device=position.device)
    return hash_words(seed, position, layer, numbers) < limit


@dataclass
class _Step:
    """One forward call: ``start`` and ``end`` are columns of the padded sequence, [start, end) its inputs."""

    start: int
    end: int
    edit_from: int  # first column that is edited; ``end`` where none is
    prompt_columns: int
    active: Tensor | None = None  # bool [batch, end - edit_from]: row is steered there
    position: Tensor | None = None  # int64, the same shape; only where a mask is drawn
    finished: Tensor | None = None  # bool [batch] after this call


class Steering:
    """What :func:`steered` yields: how much was edited, readable during and after the context.

    Attributes:
        rows: Intervention and strength of each row.
    """

    def __init__(
        self,
        gates: Gates,
        rows: Sequence[Row],
        *,
        from_last_prompt_token: Sequence[bool],
        keep: Sequence[float],
        seeds: Sequence[int],
        prompt_columns: int | None,
        stop_tokens: Collection[int],
    ) -> None:
        self.rows = tuple(rows)
        self._first = torch.tensor(list(from_last_prompt_token), dtype=torch.bool)
        self._extra = int(any(from_last_prompt_token))
        self._keep = torch.tensor([int(share * (WORD + 1)) for share in keep], dtype=torch.int64)
        self._drawn = any(share < 1 for share in keep)
        self._prompt_columns = prompt_columns
        self._width = prompt_columns
        self._stop = torch.tensor(sorted(stop_tokens), dtype=torch.int64)
        self._seeds = torch.tensor([seed & WORD for seed in seeds], dtype=torch.int64)
        self._slot, self._gamma, self._tables = _build_tables(gates, self.rows)
        self._sites = {site.layer: site.name for site in gates.sites}
        self._end = 0
        self._counted_to = 0
        self._pads = torch.zeros(len(self.rows), dtype=torch.int64)
        self._finished: Tensor | None = None
        self._counts: Tensor | None = None
        self._call: ModelCall | None = None
        self._step: _Step | None = None
        self._reached: set[int] = set()

    @property
    def edited_tokens(self) -> list[int]:
        """Tokens at which each row was edited, in all layers; 0 for a row without an intervention.

        Each position counts once. A row gives its generated tokens, the stop token among them, minus one (the last
        is never an input), or all of them with ``from_last_prompt_token``. A row that ends by other means (a stop
        string) counts on until its batch ends, which is harmless but more than that.
        """
        return [0] * len(self.rows) if self._counts is None else [int(count) for count in self._counts.tolist()]

    def begin_call(self, call: ModelCall) -> None:
        """Take note of a forward call; its first edited site lays it out."""
        self._call, self._step = call, None
        self._reached.clear()

    def _lay_out(self, call: ModelCall, output: Tensor) -> _Step:
        """Find which columns a call brings, from its first site's output, and what is edited in them."""
        batch, columns = output.shape[:2]
        if batch != len(self.rows):
            raise ConfigurationError(
                f"steered() was given {len(self.rows)} rows but the model got a batch of {batch}: give one entry a row "
                "(beams and num_return_sequences repeat rows)"
            )
        start = self._start(call, columns)
        end = start + columns
        width = end if self._width is None else self._width
        mask = call.padding_mask(batch, end) if start < width else None
        if mask is not None:
            prompt = mask[:, : min(width, end)]
            if bool((prompt[:, :-1] & ~prompt[:, 1:]).any()):
                raise ConfigurationError("prompts are padded on the right: steering needs padding_side='left'")
        step = _Step(start, end, min(max(start, width - self._extra), end), width)
        if self._drawn and start < width:
            self._pads = self._padding(call, mask, start, columns)
        if step.edit_from < end:
            self._find_active(step, output.device, call, mask)
        return step

    def _start(self, call: ModelCall, columns: int) -> int:
        """Count the column at which a call begins; its cache and its mask must agree where they tell.

        Raises:
            ConfigurationError: The context is used for a second batch.
            NeedsNotMetError: Columns are repeated or left out, as in assisted decoding.
            DependencyDriftError: The first call goes on from a cache that does not tell its length.
        """
        cached, widest = call.cached_columns, call.widest(len(self.rows))
        if self._end == 0:
            if cached is None and widest > columns:
                raise drift_error("transformers", "goes on from a cache that does not tell its length")
            return cached or 0
        if cached == 0:
            raise ConfigurationError("steered() covers one call of generate(): open a new context for the next batch")
        start = self._end if cached is not None or columns <= self._end else 0
        end = start + columns
        seen = cached if cached is not None else start if widest <= columns else widest - columns
        prompt_done = self._width is not None and self._end >= self._width
        if seen != start or (prompt_done and end != self._end + 1 and self._prompt_columns is not None):
            raise NeedsNotMetError(
                f"steered generation went from column {self._end} to {seen} with {columns} tokens: assisted decoding, "
                "guidance and whatever else calls the model out of turn cannot be steered"
            )
        if self._prompt_columns is None and end != self._end + 1:
            raise NeedsNotMetError(
                f"a steered step brought {end - self._end} tokens at once, so the end of the prompt is not known: say "
                "prompt_columns= (prefill in chunks needs it)"
            )
        return start

    def _padding(self, call: ModelCall, mask: Tensor | None, start: int, columns: int) -> Tensor:
        """Count the columns of padding before each row's first token, int64 [batch]."""
        rows = len(self.rows)
        if mask is not None:
            return (~mask).long().cumprod(1).sum(1)
        positions = call.positions(rows, start, columns)
        if positions is not None:
            return start + columns - 1 - positions[:, -1]
        if rows > 1:
            raise drift_error(
                "transformers", "passes neither a padding mask nor positions, which keep below 1 needs in a batch"
            )
        return self._pads

    def _find_active(self, step: _Step, device: torch.device, call: ModelCall, mask: Tensor | None) -> None:
        """Mark the rows that are steered in each edited column: not the unsteered, not those that have finished."""
        first, end, width = step.edit_from, step.end, step.prompt_columns
        active = (self._slot.to(device) > 0).unsqueeze(1).repeat(1, end - first)
        answer_from = max(first, width)
        active[:, : answer_from - first] &= self._first.to(device).unsqueeze(1)
        finished = torch.zeros(len(self.rows), dtype=torch.bool, device=device)
        if self._finished is not None and step.start > 0:
            finished = self._finished.to(device)
        if answer_from < end and len(self._stop):
            inputs = call.require_tokens(len(self.rows), end - step.start, "the end of an answer is not known")
            stopped = torch.isin(inputs[:, answer_from - step.start :].to(device), self._stop.to(device))
            over = (stopped.cumsum(1) > 0) | finished.unsqueeze(1)
            active[:, answer_from - first :] &= ~over
            finished = over[:, -1]
        if mask is not None:
            active &= mask[:, first:end].to(device)
        step.active, step.finished = active, finished
        if self._drawn:
            columns = torch.arange(first, end, device=device).unsqueeze(0)
            step.position = (columns - self._pads.to(device).unsqueeze(1)).clamp(min=0)

    def has(self, site: GateSite) -> bool:
        """Whether any row edits this site."""
        return site.layer in self._tables

    def edit(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        """Make the forward hook of a layer's gate activation module."""

        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            call = self._call
            if call is None:
                raise ModelError(
                    f"{self._sites[layer]} ran outside of a call of the steered model: give steered() the causal "
                    "language model itself, not a wrapper around it or a part of it"
                )
            if not isinstance(output, Tensor) or output.dim() != 3:
                raise drift_error(
                    "transformers",
                    f"gives {describe(output)} from {self._sites[layer]} instead of a tensor [rows, columns, neurons]",
                )
            if self._step is None:
                self._step = self._lay_out(call, output)
            step = self._step
            if tuple(output.shape[:2]) != (len(self.rows), step.end - step.start):
                raise ModelError(
                    f"{self._sites[layer]} gave {list(output.shape)}, expected [{len(self.rows)}, "
                    f"{step.end - step.start}, neurons]: this model cannot be steered here"
                )
            if output.shape[-1] != self._tables[layer][0].shape[-1]:
                raise drift_error(
                    "transformers",
                    f"gives {describe(output)} from {self._sites[layer]} instead of "
                    f"{self._tables[layer][0].shape[-1]} neurons",
                )
            self._reached.add(layer)
            if step.active is None:
                return None
            return self._edited(step, step.active, layer, output)

        return hook

    def _edited(self, step: _Step, active: Tensor, layer: int, output: Tensor) -> Tensor:
        device = output.device
        if self._tables[layer][0].device != device:
            self._tables[layer] = (self._tables[layer][0].to(device), self._tables[layer][1].to(device))
            self._slot, self._gamma = self._slot.to(device), self._gamma.to(device)
            self._seeds, self._keep = self._seeds.to(device), self._keep.to(device)
        clamp, add = self._tables[layer]
        added = add[self._slot.to(device)] * self._gamma.to(device).unsqueeze(1)
        raised = added.unsqueeze(1)
        if step.position is not None:
            seeds, keep = self._seeds.to(device).unsqueeze(1), self._keep.to(device).unsqueeze(1)
            raised = raised * keep_mask(seeds, step.position.to(device), layer, output.shape[-1], keep)
        before = output[:, step.edit_from - step.start :]
        # In float32 (or wider) and rounded once; rows that are not active keep their bits.
        wide = before.to(torch.promote_types(before.dtype, torch.float32))
        changed = torch.minimum(wide, clamp[self._slot.to(device)].unsqueeze(1)) + raised
        changed = torch.where(active.to(device).unsqueeze(-1), changed.to(output.dtype), before)
        if before.shape == output.shape:
            return changed
        whole = output.clone()
        whole[:, step.edit_from - step.start :] = changed
        return whole

    def after_call(self, _model: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        """Forward hook of the model, run when the call succeeded: check that every layer was reached, then count."""
        step, self._call, self._step = self._step, None, None
        missed = [self._sites[layer] for layer in sorted(self._tables) if layer not in self._reached]
        if missed:
            raise ModelError(
                f"steering had no effect: {missed[0]} and {len(missed) - 1} more gate activations were bypassed (a "
                "fused or compiled kernel?); load the model without it"
            )
        if step is None:
            return
        if step.active is not None:
            new_from = max(step.edit_from, self._counted_to)
            fresh = step.active[:, new_from - step.edit_from :].sum(1)
            self._counts = fresh if self._counts is None else self._counts + fresh
            self._finished = step.finished
        self._counted_to = max(self._counted_to, step.end)
        self._end, self._width = step.end, step.prompt_columns


def _build_tables(gates: Gates, rows: Sequence[Row]) -> tuple[Tensor, Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """Give each different intervention a slot; slot 0 changes nothing.

    Returns:
        Slot (int64) and strength (float32) of each row; for each layer with edits, clamp and add tables
        (float32 [slots, neurons]).
    """
    found: dict[Intervention, int] = {}
    slots: list[int] = []
    for row in rows:
        if row is None:
            slots.append(0)
            continue
        intervention, strength = row
        intervention.check_model(gates.layers, gates.neurons)
        check_strength(strength)
        slots.append(found.setdefault(intervention, len(found) + 1) if len(intervention) else 0)
    dense = [intervention.tables() for intervention in found]
    unclamped, unmoved = torch.full((gates.neurons,), torch.inf), torch.zeros(gates.neurons)
    tables = {}
    for layer in sorted({int(layer) for one in found for layer in one.layer}):
        clamp = torch.stack([unclamped, *(torch.from_numpy(table[0][layer]) for table in dense)])
        add = torch.stack([unmoved, *(torch.from_numpy(table[1][layer]) for table in dense)])
        tables[layer] = (clamp, add)
    gamma = torch.tensor([0.0 if row is None else float(row[1]) for row in rows], dtype=torch.float32)
    return torch.tensor(slots, dtype=torch.int64), gamma, tables


@contextmanager
def steered(
    model: nn.Module,
    gates: Gates,
    rows: Sequence[Row],
    *,
    from_last_prompt_token: bool | Sequence[bool] = False,
    keep: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    prompt_columns: int | None = None,
    stop_tokens: Collection[int] | None = None,
) -> Iterator[Steering]:
    """Edit gate activations during one ``model.generate()`` of a left-padded batch, each row by its own intervention.

    For a neuron of an edited row, ``min(act(gate), clamp) + strength * add``, in every step after the prompt. Rows
    without an intervention, padding and rows that have finished keep their bits. The model is as before afterwards,
    whatever happens.

    Args:
        model: The causal language model whose ``generate`` (or forward) is called.
        gates: Its gates, from :func:`~personalitybench.activations.layouts.find_gates`.
        rows: For each row of the batch, intervention and strength, or None. A part that must hold several
            interventions is made with :func:`~personalitybench.activations.interventions.combine`.
        from_last_prompt_token: Edit the last prompt position too, so that the first answer token is steered; for all
            rows or one for each, as are the next two.
        keep: Share of the additions that stay at each step, drawn by :func:`keep_mask` (released script: 0.9);
            clamps always stay.
        seed: Of that draw.
        prompt_columns: Width of the padded prompts; by default that of the first call. Needed where a prompt
            comes in chunks (``prefill_chunk_size``; the last chunk may have one column and look like a step), or
            prompt and answer in one call.
        stop_tokens: Tokens that end an answer; by default the end tokens of ``model.generation_config``. What
            ``generate`` is told otherwise must be told here: a row is steered up to its first stop token. (Padding
            tells nothing: a model may generate that token in mid-answer.)

    Yields:
        The counts of what was edited.

    Raises:
        ConfigurationError: A batch of another size, right padding, a setting out of range, or the model is being
            steered already.
        ModelError: An intervention of another shape (names both), or a gate activation was bypassed, so that
            steering would silently have done nothing.
        NeedsNotMetError: A way of generating that cannot be steered (assisted decoding).
    """
    keeps = _for_each("keep", keep, len(rows))
    wrong = [share for share in keeps if not 0 < share <= 1]
    if wrong:
        raise ConfigurationError(f"keep {wrong[0]}: give a share above 0 and at most 1")
    if prompt_columns is not None and prompt_columns < 1:
        raise ConfigurationError(f"prompt_columns {prompt_columns}: a prompt has at least one token")
    modules: list[nn.Module] = [site.module for site in gates.sites]
    if len(set(modules)) != len(modules):
        raise ModelError(f"layers of this {gates.family} model share one activation module, so it cannot be steered")
    if any(module in _steered_modules for module in modules):
        raise ConfigurationError("this model is being steered already: leave that context first, or use combine()")
    state = Steering(
        gates,
        rows,
        from_last_prompt_token=_for_each("from_last_prompt_token", from_last_prompt_token, len(rows)),
        keep=keeps,
        seeds=_for_each("seed", seed, len(rows)),
        prompt_columns=prompt_columns,
        stop_tokens=end_tokens(model) if stop_tokens is None else stop_tokens,
    )
    base: Any = getattr(model, "get_base_model", None)  # of a peft adapter, whose generate() calls what it wraps
    with _hooks(model if base is None else base(), gates.sites, state):
        yield state


@contextmanager
def _hooks(model: nn.Module, sites: Sequence[GateSite], state: Steering) -> Iterator[None]:
    """Install the hooks, and take them away whatever happens."""
    handles: list[Any] = []
    modules = [site.module for site in sites]
    _steered_modules.update(modules)
    try:
        handles.append(model.register_forward_hook(state.after_call))
        handles.extend(site.module.register_forward_hook(state.edit(site.layer)) for site in sites if state.has(site))
        with followed(model, state.begin_call):
            yield
    finally:
        for handle in handles:
            handle.remove()
        _steered_modules.difference_update(modules)


def _for_each(name: str, value: T | Sequence[T], rows: int) -> list[T]:
    """One value for each row, of what was given for all or for each."""
    values = list(value) if isinstance(value, Sequence) else [value] * rows
    if len(values) != rows:
        raise ConfigurationError(f"{len(values)} values of {name} for {rows} rows: give one for each, or one for all")
    return values


def end_tokens(model: nn.Module) -> set[int]:
    """Tokens at which ``generate`` of a transformers model stops, by its generation settings; may be empty."""
    value: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    values = value if isinstance(value, (list, tuple, set)) else [value]
    return {int(token) for token in values if token is not None}
