"""Identification: answers of both poles, read again by the model, become statistics of its gate activations.

Two phases. Generating keeps token ids, one line an answer, and resumes after a kill. Reading runs prompt and answer
through the model once (teacher forcing), which gives the statistics of decoding and can be repeated from the file.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from personalitybench.activations.bins import Bins
from personalitybench.activations.layouts import captured, find_gates
from personalitybench.activations.statistics import GateStatistics, StatisticsBuilder, StatisticsSource
from personalitybench.activations.token_rules import token_mask
from personalitybench.errors import DataError
from personalitybench.files import JsonLines
from personalitybench.questions import Question, QuestionSource

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn (``search_neuron.py``: 500 new tokens, greedy, repetition penalty 1.1)."""

    max_tokens: int = 500
    repetition_penalty: float = 1.1
    batch_size: int = 32


def draw_questions(source: QuestionSource, trait: str, count: int | None, seed: int) -> list[Question]:
    """Draw identification questions of a trait, as many of each facet as can be, by a seeded shuffle.

    Args:
        source: Where they come from.
        trait: Name of the trait.
        count: How many, all if None or if there are no more.
        seed: Of the shuffle.

    Returns:
        Questions, the facets taking turns.
    """
    by_facet: dict[str, list[Question]] = {}
    for row in source.questions("identify", trait):
        question = Question.from_row(row)
        by_facet.setdefault(question.facet, []).append(question)
    for facet, group in by_facet.items():
        digest = hashlib.sha256(f"{seed}\0identify\0{trait}\0{facet}".encode()).digest()
        random.Random(digest).shuffle(group)  # noqa: S311 (a reproducible draw, not a secret)
    turns: list[Question] = []
    for place in range(max(map(len, by_facet.values()), default=0)):
        turns += [group[place] for _, group in sorted(by_facet.items()) if place < len(group)]
    return turns[:count]


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[str, str]],
    *,
    decoding: Decoding,
    lines: JsonLines,
    report: Report,
) -> None:
    """Answer prompts greedily and append each answer to a file; what is in the file already is passed over.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer; prompts hold their special tokens already.
        prompts: Id and text of each prompt. The order decides the batches, so a resumed run forms the same.
        decoding: How to draw.
        lines: Receives ``id``, ``prompt_tokens``, ``answer_tokens`` (with the end token, if it came), ``answer``.
        report: Told (what, done, total).
    """
    done = {row["id"] for row in lines.read()}
    for batch in _batches(prompts, decoding.batch_size):
        missing = [index for index, (identity, _) in enumerate(batch) if identity not in done]
        if not missing:
            continue
        encoded = tokenizer(
            [text for _, text in batch],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **encoded,
                max_new_tokens=decoding.max_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=decoding.repetition_penalty,
                pad_token_id=tokenizer.pad_token_id,
            )
        start = encoded["input_ids"].shape[1]
        rows = []
        for index in missing:
            answer = _until_end(output[index, start:].tolist(), model, tokenizer)
            prompt = encoded["input_ids"][index][encoded["attention_mask"][index].bool()].tolist()
            text = tokenizer.decode(answer, skip_special_tokens=True)
            rows.append({"id": batch[index][0], "prompt_tokens": prompt, "answer_tokens": answer, "answer": text})
        lines.append(rows)
        done.update(row["id"] for row in rows)
        report("answers", len(done), len(prompts))


def read_answers(
    model: Any,
    lines: JsonLines,
    source: StatisticsSource,
    *,
    shards: int,
    batch_size: int,
    report: Report,
    bins: Bins | None = None,
) -> GateStatistics:
    """Run prompts and answers through the model and count its gate activations over the answers' tokens.

    Args:
        model: The model that wrote the answers (or another with the same tokens).
        lines: What :func:`generate_answers` left.
        source: What was run, for the manifest.
        shards: Parts for the jackknife; a question is in the same part for every target.
        batch_size: Answers at a time.
        report: Told (what, done, total).
        bins: Bins of the histogram.

    Raises:
        DataError: There is no answer.
        NeedsNotMetError: The model has no gates that can be read.
    """
    rows = list(lines.read())
    if not rows:
        raise DataError(f"{lines.path} holds no answer: generate the answers first")
    gates = find_gates(model)
    builder = StatisticsBuilder(gates.layers, gates.neurons, shards, bins, device=model.device)
    questions = [0] * shards
    rows.sort(key=lambda row: -len(row["prompt_tokens"]) - len(row["answer_tokens"]))
    finished = 0
    for batch in _batches(rows, batch_size):
        prompts = [row["prompt_tokens"] for row in batch]
        answers = [row["answer_tokens"] for row in batch]
        tokens = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        width = max(map(len, tokens))
        ids = torch.zeros((len(batch), width), dtype=torch.int64)
        mask = torch.zeros((len(batch), width), dtype=torch.int64)
        for place, one in enumerate(tokens):
            ids[place, : len(one)] = torch.tensor(one)
            mask[place, : len(one)] = 1
        counted = token_mask(
            mask,
            torch.tensor([len(one) for one in prompts]),
            torch.tensor([len(one) for one in answers]),
            source.token_rule,
        ).to(model.device)
        parts = [part_of(row["id"], shards) for row in batch]
        for part in parts:
            questions[part] += 1
        shard = torch.tensor(parts, device=model.device)
        shard_of_token = shard.unsqueeze(1).expand(-1, width)[counted]

        def visit(
            layer: int, activation: torch.Tensor, where: torch.Tensor = counted, part: torch.Tensor = shard_of_token
        ) -> None:
            builder.add(layer, activation[where], part)

        with torch.inference_mode(), captured(gates, visit):
            model(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, logits_to_keep=1
            )
        finished += len(batch)
        report("statistics", finished, len(rows))
    return builder.build(source, questions)


def part_of(question_id: str, shards: int) -> int:
    """The part of a question, by a hash of its id."""
    return int.from_bytes(hashlib.sha256(f"part:{question_id}".encode()).digest()[:8]) % shards


def _until_end(tokens: list[int], model: Any, tokenizer: Any) -> list[int]:
    """An answer up to and with its first end token; the rest of the row is padding."""
    ends = model.generation_config.eos_token_id
    stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
    for place, token in enumerate(tokens):
        if token in stops:
            return tokens[: place + 1]
    return tokens


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
