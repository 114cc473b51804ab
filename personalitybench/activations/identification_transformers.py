"""Identification on transformers: the reference of what an identification engine answers and counts.

Comes between :mod:`personalitybench.activations.identification`, whose protocol it follows, and
:mod:`personalitybench.activations.statistics`, which counts. It takes a loaded model;
:func:`personalitybench.backends.engines.open_engine` loads one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from personalitybench.activations.bins import Bins
from personalitybench.activations.calls import ModelCall, followed, generated_sequences, run_forward
from personalitybench.activations.identification import (
    Decoding,
    Report,
    answers_to_read,
    batches,
    longest_first,
    part_of,
    questions_by_part,
)
from personalitybench.activations.layouts import Gates, captured, find_gates
from personalitybench.activations.statistics import GateStatistics, StatisticsBuilder, StatisticsSource
from personalitybench.activations.steering import end_tokens
from personalitybench.activations.token_rules import token_mask
from personalitybench.errors import DependencyDriftError, ModelError
from personalitybench.files import JsonLines
from personalitybench.versions import drift_error


class TransformersEngine:
    """Answers and reads with a transformers model.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        batch_size: Answers that are read at a time.
        template: Writes a user turn as a prompt; by default the tokenizer's chat template does.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch_size: int, template: Callable[[str], str] | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._template = template
        self._stops = stop_tokens(model, tokenizer)

    def chat_prompt(self, turn: str) -> str:
        """See :meth:`IdentificationEngine.chat_prompt`."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ModelError(
                f"{self.model.name_or_path} has no chat template: identification asks with the turns of a chat, so "
                "name a model that was tuned for chats"
            )
        if self._template is not None:
            return self._template(turn)
        chat = [{"role": "user", "content": turn}]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def generate(
        self, prompts: Sequence[tuple[str, str]], *, decoding: Decoding, lines: JsonLines, report: Report
    ) -> None:
        """See :meth:`IdentificationEngine.generate`.

        The order of the prompts decides the batches. In low precision an answer depends on its batch mates, so a
        batch that was cut is generated again as a whole.
        """
        done = {row["id"] for row in lines.read()}
        for batch in batches(prompts, decoding.batch_size):
            if all(identity in done for identity, _ in batch):
                continue
            rows = [row for row in self._answer(batch, self._encode(batch), decoding) if row["id"] not in done]
            lines.append(rows)
            done.update(row["id"] for row in rows)
            report("answers", len(done), len(prompts))

    def read(
        self, lines: JsonLines, source: StatisticsSource, *, shards: int, report: Report, bins: Bins | None = None
    ) -> GateStatistics:
        """See :meth:`IdentificationEngine.read`."""
        rows = answers_to_read(lines)
        gates, builder = self._builder(shards, bins)
        finished = 0
        for batch in batches(rows, self.batch_size):
            self._read(batch, source, shards, gates, builder)
            finished += len(batch)
            report("statistics", finished, len(rows))
        return builder.build(source, questions_by_part([row["id"] for row in rows], shards))

    def close(self) -> None:
        """See :meth:`IdentificationEngine.close`."""
        self.model = self._template = None

    def generate_counting(
        self,
        prompts: Sequence[tuple[str, str]],
        *,
        decoding: Decoding,
        lines: JsonLines,
        source: StatisticsSource,
        shards: int,
        report: Report,
        bins: Bins | None = None,
    ) -> GateStatistics:
        """See :meth:`IdentificationEngine.generate_counting`.

        Counted are the decode steps, and of those the rows that have not finished.

        Raises:
            NeedsNotMetError: The model has no gates.
            DependencyDriftError: It brings more than one token at a decode step.
        """
        gates, builder = self._builder(shards, bins)
        done: set[str] = set()
        for earlier in batches(longest_first(lines), self.batch_size):
            self._read(earlier, source, shards, gates, builder)
            done.update(row["id"] for row in earlier)
            report("answers of an earlier session", len(done), len(prompts))
        for batch in batches(prompts, decoding.batch_size):
            there = torch.tensor([identity in done for identity, _ in batch], device=self.model.device)
            if there.all():
                continue
            parts = torch.tensor([part_of(identity, shards) for identity, _ in batch], device=self.model.device)
            encoded = self._encode(batch)
            width = encoded["input_ids"].shape[1]
            with _counting(
                self.model, gates, builder, parts=parts, there=there, stops=self._stops, prompt_columns=width
            ):
                rows = [row for row in self._answer(batch, encoded, decoding) if row["id"] not in done]
            lines.append(rows)
            done.update(row["id"] for row in rows)
            report("answers and statistics", len(done), len(prompts))
        return builder.build(source, questions_by_part([identity for identity, _ in prompts], shards))

    def _builder(self, shards: int, bins: Bins | None) -> tuple[Gates, StatisticsBuilder]:
        gates = find_gates(self.model)
        return gates, StatisticsBuilder(gates.layers, gates.neurons, shards, bins, device=self.model.device)

    def _encode(self, batch: Sequence[tuple[str, str]]) -> Any:
        """Encode a batch of prompts, padded on the left."""
        encoded = self.tokenizer(
            [text for _, text in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(self.model.device)
        if not bool(encoded["attention_mask"][:, -1].all()):
            raise drift_error("transformers", "pads prompts on the right although padding_side says left")
        return encoded

    def _answer(self, batch: Sequence[tuple[str, str]], encoded: Any, decoding: Decoding) -> list[dict[str, Any]]:
        """Answer a batch of encoded prompts; gives the lines to keep."""
        try:
            with torch.inference_mode():
                output = self.model.generate(
                    **encoded,
                    max_new_tokens=decoding.max_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    repetition_penalty=decoding.repetition_penalty,
                    eos_token_id=self._stops or None,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
        except (TypeError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise drift_error("transformers", f"refuses a call of generate ({first})") from error
        prompts, seen = encoded["input_ids"], encoded["attention_mask"].bool()
        output = generated_sequences(output, prompts)
        rows = []
        for place, (identity, _) in enumerate(batch):
            answer = self._until_end(output[place, prompts.shape[1] :].tolist())
            rows.append(
                {
                    "id": identity,
                    "prompt_tokens": prompts[place][seen[place]].tolist(),
                    "answer_tokens": answer,
                    "answer": self.tokenizer.decode(answer, skip_special_tokens=True),
                }
            )
        return rows

    def _read(
        self,
        batch: Sequence[dict[str, Any]],
        source: StatisticsSource,
        shards: int,
        gates: Gates,
        builder: StatisticsBuilder,
    ) -> None:
        """Read a batch of answers, padded on the right, and count."""
        device = self.model.device
        tokens = [row["prompt_tokens"] + row["answer_tokens"] for row in batch]
        width = max(map(len, tokens))
        ids = torch.zeros((len(batch), width), dtype=torch.int64)
        mask = torch.zeros((len(batch), width), dtype=torch.int64)
        for place, one in enumerate(tokens):
            ids[place, : len(one)] = torch.tensor(one)
            mask[place, : len(one)] = 1
        counted = token_mask(
            mask,
            torch.tensor([len(row["prompt_tokens"]) for row in batch]),
            torch.tensor([len(row["answer_tokens"]) for row in batch]),
            source.token_rule,
        ).to(device)
        shard = torch.tensor([part_of(row["id"], shards) for row in batch], device=device)
        shard_of_token = shard.unsqueeze(1).expand(-1, width)[counted]

        visited = False

        def visit(layer: int, activation: Tensor) -> None:
            nonlocal visited
            visited = True
            builder.add(layer, activation[counted], shard_of_token)

        with torch.inference_mode(), captured(gates, visit):
            run_forward(self.model, ids.to(device), mask.to(device), logits_to_keep=1)
        if not visited:
            raise _bypassed(gates)

    def _until_end(self, tokens: list[int]) -> list[int]:
        """An answer up to and with its first end token; the rest of the row is padding."""
        for place, token in enumerate(tokens):
            if token in self._stops:
                return tokens[: place + 1]
        return tokens


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer of a transformers model, in order."""
    own = tokenizer.eos_token_id
    return sorted(end_tokens(model) | ({int(own)} if own is not None else set()))


@contextmanager
def _counting(
    model: Any,
    gates: Gates,
    builder: StatisticsBuilder,
    *,
    parts: Tensor,
    there: Tensor,
    stops: Sequence[int],
    prompt_columns: int,
) -> Iterator[None]:
    """Count the decode steps of one ``generate()``: one column each, after the columns of the prompt.

    A row has finished once an end token is among its inputs: that one is the last token of its answer, which a batch
    of one would never be given. Rows that were ``there`` before were counted before.
    """
    ends = torch.tensor(list(stops), dtype=torch.int64, device=parts.device)
    finished = there.clone()
    live: Tensor | None = None
    call: ModelCall | None = None
    started = False
    end = 0

    def begin(new: ModelCall) -> None:
        nonlocal call, live, started
        call, live, started = new, None, True

    def lay_out(columns: int) -> None:
        """Find the place of a call in the answers, and the rows that are counted in it."""
        nonlocal end, live
        if call is None:
            raise ModelError("an activation ran outside of a call of the model: give the causal language model itself")
        place, end = end, end + columns
        in_prompt = end <= prompt_columns
        if call.cached_columns not in {None, place} or not (in_prompt or (columns == 1 and place >= prompt_columns)):
            raise drift_error(
                "transformers",
                f"brought columns {call.cached_columns or place} to {end} at once after {place}, prompts having "
                f"{prompt_columns}; statistics of teacher-forced answers do without decode steps",
            )
        if not in_prompt:
            tokens = call.require_tokens(len(parts), 1, "the end of an answer is not known")
            finished.logical_or_(torch.isin(tokens[:, 0].to(ends.device), ends))
            live = ~finished

    def visit(layer: int, activation: Tensor) -> None:
        nonlocal started
        if started or call is None:
            started = False
            lay_out(activation.shape[1])
        if live is not None:
            builder.add(layer, activation[live, 0], parts[live])

    with followed(model, begin), captured(gates, visit):
        yield
    if started:  # a call began, and no activation came
        raise _bypassed(gates)


def _bypassed(gates: Gates) -> DependencyDriftError:
    return drift_error(
        "transformers",
        f"runs none of the activation modules of this {gates.family} model (so do fused and compiled kernels), so "
        "nothing was counted",
    )
