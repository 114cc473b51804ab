"""Identification on transformers: counting while generating against reading, prompts, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from personalitybench.activations.bins import Bins  # noqa: E402
from personalitybench.activations.identification import (  # noqa: E402
    Decoding,
    batches,
    draw_questions,
    part_of,
    questions_by_part,
)
from personalitybench.activations.identification_transformers import TransformersEngine  # noqa: E402
from personalitybench.errors import DataError, ModelError  # noqa: E402
from personalitybench.files import JsonLines  # noqa: E402
from personalitybench.questions import open_source  # noqa: E402
from tests.made_up import SOURCE  # noqa: E402

pytestmark = pytest.mark.model

TURNS = [
    "Why?",
    "A friend calls you late in the evening. How do you respond to it, and what do you tell her?",
    "Go on.",
]


def quiet(what: str, done: int, total: int) -> None:
    assert what
    assert done <= total


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def test_counts_of_decoding_are_those_of_reading(demo_model: Path, tmp_path: Path) -> None:
    """Prompts of several lengths, one shorter than the batch; rows that finish early, one at its first token."""
    model, tokenizer = load(demo_model)
    plain = TransformersEngine(model, tokenizer, batch_size=8)
    prompts = [(f"q{number}", plain.chat_prompt(turn)) for number, turn in enumerate(TURNS)]
    prompts.append(("short", "Once upon a"))
    first = JsonLines(tmp_path / "first.jsonl")
    plain.generate(prompts, decoding=Decoding(8, 1.1, 4), lines=first, report=quiet)
    before = {row["id"]: row["answer_tokens"] for row in first.read()}
    # End tokens that make one answer stop at once and another in its middle.
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id, before["q0"][0], before["q2"][4]]
    engine = TransformersEngine(model, tokenizer, batch_size=3)
    lines = JsonLines(tmp_path / "answers.jsonl")
    how: dict[str, Any] = {"shards": 3, "report": quiet}
    counted = engine.generate_counting(
        prompts, decoding=Decoding(8, 1.1, 4), lines=lines, source=SOURCE, bins=Bins.paper_code(), **how
    )
    read = engine.read(lines, SOURCE, bins=Bins.paper_code(), **how)
    rows = {row["id"]: row for row in lines.read()}
    lengths = {identity: len(row["answer_tokens"]) for identity, row in rows.items()}
    assert lengths["q0"] == 1, "an answer of one token, which counts for nothing"
    assert lengths["q2"] < max(lengths.values()), "a finished row in a padded batch"
    assert len(rows["short"]["prompt_tokens"]) < len(prompts), "the released code would take this prefill for a step"
    assert counted.manifest == read.manifest
    assert int(read.tokens.sum()) == sum(length - 1 for length in lengths.values())
    assert read.active.sum() > 0
    # 0 of 125,582 where this was written; a gate within the last bits of zero may fall to either side elsewhere.
    assert np.abs(counted.active - read.active).sum() <= 2
    moved = np.abs(counted.histogram - read.histogram).sum() / 2
    assert moved <= 1e-4 * read.histogram.sum(), "values beside the edge of a bin"


def test_the_same_answers_with_and_without_counting_and_after_a_cut(tiny_model: Path, tmp_path: Path) -> None:
    engine = TransformersEngine(*load(tiny_model), batch_size=2)
    prompts = [(f"q{number}", engine.chat_prompt(turn)) for number, turn in enumerate(TURNS * 2)]
    whole, counted, cut = (JsonLines(tmp_path / f"{name}.jsonl") for name in ("whole", "counted", "cut"))
    decoding = Decoding(6, 1.1, 4)
    engine.generate(prompts, decoding=decoding, lines=whole, report=quiet)
    statistics = engine.generate_counting(
        prompts, decoding=decoding, lines=counted, source=SOURCE, shards=2, report=quiet
    )
    assert whole.path.read_bytes() == counted.path.read_bytes()
    assert statistics.manifest.questions == tuple(questions_by_part([one for one, _ in prompts], 2))
    cut.path.write_bytes(b"".join(whole.path.read_bytes().splitlines(keepends=True)[:2]) + b'{"id": "q')
    engine.generate(prompts, decoding=decoding, lines=cut, report=quiet)
    assert whole.path.read_bytes() == cut.path.read_bytes()


def test_counting_goes_on_where_it_was_cut(tiny_model: Path, tmp_path: Path) -> None:
    """What was answered before is read, also where a kill left half a batch; nothing is counted twice."""
    engine = TransformersEngine(*load(tiny_model), batch_size=2)
    prompts = [(f"q{number}", engine.chat_prompt(turn)) for number, turn in enumerate(TURNS * 3)]
    decoding, how = Decoding(6, 1.1, 4), {"source": SOURCE, "shards": 2, "report": quiet}
    whole, cut = (JsonLines(tmp_path / f"{name}.jsonl") for name in ("whole", "cut"))
    expected = engine.generate_counting(prompts, decoding=decoding, lines=whole, **how)
    for kept in (4, 6, 9):
        cut.path.write_bytes(b"".join(whole.path.read_bytes().splitlines(keepends=True)[:kept]))
        found = engine.generate_counting(prompts, decoding=decoding, lines=cut, **how)
        assert whole.path.read_bytes() == cut.path.read_bytes()
        assert found.manifest == expected.manifest
        assert np.abs(found.active - expected.active).sum() <= 2
        assert expected.active.sum() > 0


def test_what_cannot_be_asked_or_read(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny_model)
    engine = TransformersEngine(model, tokenizer, batch_size=2)
    with pytest.raises(DataError, match="holds no answer: generate"):
        engine.read(JsonLines(tmp_path / "none.jsonl"), SOURCE, shards=2, report=quiet)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        engine.chat_prompt("Why?")


def test_questions_are_drawn_evenly_over_facets() -> None:
    source = open_source("sample")
    drawn = draw_questions(source, "openness", 12, seed=0)
    assert sorted(question.facet for question in drawn) == sorted([*{q.facet for q in drawn}] * 2)
    assert drawn == draw_questions(source, "openness", 12, seed=0)
    assert drawn != draw_questions(source, "openness", 12, seed=1)
    assert drawn[:5] == draw_questions(source, "openness", 5, seed=0)
    assert len(draw_questions(source, "openness", None, seed=0)) == 36


def test_parts_and_batches() -> None:
    ids = [f"question {number}" for number in range(1000)]
    found = questions_by_part(ids, 4)
    assert sum(found) == 1000
    assert min(found) > 200
    assert found[part_of("question 7", 4)] > 0
    assert [len(batch) for batch in batches(ids[:7], 3)] == [3, 3, 1]
