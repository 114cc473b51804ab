"""Which tokens of a batch count: by their own position, whatever the padding; and the same as decoding reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from personalitybench.activations.statistics import StatisticsBuilder, token_mask  # noqa: E402
from personalitybench.errors import ConfigurationError  # noqa: E402
from tests.made_up import SOURCE  # noqa: E402


def mask_of(side: str, sizes: list[tuple[int, int]], rule: str = "answer", extra: int = 0) -> list[list[int]]:
    """Positions within their own sequence that count, for rows of (prompt, answer) tokens."""
    width = max(sum(size) for size in sizes) + extra
    mask = torch.zeros(len(sizes), width, dtype=torch.int64)
    begin = []
    for row, (prompt, answer) in enumerate(sizes):
        total = prompt + answer
        begin.append(width - total if side == "left" else 0)
        mask[row, begin[-1] : begin[-1] + total] = 1
    prompts, answers = torch.tensor(sizes).T
    chosen = token_mask(mask, prompts, answers, rule)
    assert chosen.dtype == torch.bool
    assert not chosen[mask == 0].any()
    return [(row.nonzero().flatten() - start).tolist() for row, start in zip(chosen, begin, strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rule", ["answer", "released-code"])
def test_tokens_count_by_their_own_position(side: str, rule: str) -> None:
    # A usual row; no answer; an answer of one token, which is never read; of two; a prompt shorter than the batch.
    sizes = [(4, 5), (3, 0), (6, 1), (2, 2), (1, 3)]
    assert mask_of(side, sizes, rule) == [[4, 5, 6, 7], [], [], [2], [1, 2]]
    assert mask_of(side, sizes, rule, extra=3) == mask_of(side, sizes, rule)


def test_what_follows_a_finished_row_does_not_count() -> None:
    mask = torch.ones(2, 10, dtype=torch.int64)  # generation goes on for row 1: row 0 gets fill tokens with mask 1
    chosen = token_mask(mask, torch.tensor([4, 4]), torch.tensor([3, 6]))
    assert chosen.int().tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]]


def test_the_last_answer_token_need_not_be_in_the_batch() -> None:
    read = torch.ones(1, 6, dtype=torch.int64)  # the seventh token was generated and never read
    assert token_mask(read, torch.tensor([4]), torch.tensor([3]))[0].nonzero().flatten().tolist() == [4, 5]


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=5),
    side=st.sampled_from(["left", "right"]),
    extra=st.integers(0, 3),
)
def test_padding_never_changes_which_tokens_count(sizes: list[tuple[int, int]], side: str, extra: int) -> None:
    alone = [mask_of("right", [size])[0] for size in sizes]
    assert mask_of(side, sizes, extra=extra) == alone
    assert alone == [list(range(prompt, prompt + answer - 1)) for prompt, answer in sizes]


@pytest.mark.parametrize(
    ("mask", "prompt", "answer", "rule", "message"),
    [
        ([[1, 0, 1]], [1], [1], "answer", "row 0 of the batch has padding between its tokens"),
        ([[1, 1, 1], [1, 1, 0]], [2, 2], [1, 2], "answer", "row 1 of the batch is shorter"),
        ([[1, 1]], [0], [1], "answer", "prompt of no tokens"),
        ([[1, 1]], [1], [-1], "answer", "fewer than none"),
        ([[1, 1]], [1, 1], [1], "answer", r"\[batch, tokens\]"),
        ([1, 1], [1, 1], [1, 1], "answer", r"\[batch, tokens\]"),
        ([[1, 1]], [1], [1], "all", "unknown token rule 'all': known are answer, released-code"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(mask: Any, prompt: Any, answer: Any, rule: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        token_mask(torch.tensor(mask), torch.tensor(prompt), torch.tensor(answer), rule)


@pytest.mark.parametrize("side", ["left", "right"])
def test_teacher_forcing_counts_what_decoding_reads(side: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    seen: list[list[Any]] = [[], []]
    hooks = [
        layer.mlp.act_fn.register_forward_hook(lambda _m, _i, out, into=into: into.append(out.detach()))
        for layer, into in zip(model.model.layers, seen, strict=True)
    ]
    sizes = [(7, 6), (40, 9), (3, 1), (5, 12)]
    decoding = StatisticsBuilder(2, 48, 4)
    rows = []
    with torch.no_grad():
        for shard, (prompt, answer) in enumerate(sizes):
            tokens = torch.randint(1, 40, (1, prompt))
            rows.append(model.generate(tokens, max_new_tokens=answer, do_sample=False)[0])
            for layer in range(2):
                steps = [step[0] for step in seen[layer] if step.shape[1] == 1]  # as the released script: decode alone
                decoding.add(layer, torch.cat([torch.empty(0, 48), *steps]), shard)
                seen[layer].clear()
        width = max(map(len, rows)) + 2
        batch, mask = torch.zeros(4, width, dtype=torch.int64), torch.zeros(4, width, dtype=torch.int64)
        for row, tokens in enumerate(rows):
            start = width - len(tokens) if side == "left" else 0
            batch[row, start : start + len(tokens)] = tokens
            mask[row, start : start + len(tokens)] = 1
        model(batch, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for hook in hooks:
        hook.remove()
    chosen = token_mask(mask, *torch.tensor(sizes).T)
    reading = StatisticsBuilder(2, 48, 4)
    shards = torch.arange(4)[:, None].expand_as(chosen)[chosen]
    for layer in range(2):
        (all_tokens,) = seen[layer]
        reading.add(layer, all_tokens[chosen], shards)
    one, other = reading.build(SOURCE, [1] * 4), decoding.build(SOURCE, [1] * 4)
    assert one.tokens.tolist() == other.tokens.tolist() == [answer - 1 for _, answer in sizes]
    assert (one.active == other.active).all()
    assert np.abs(one.histogram - other.histogram).sum() <= 2  # a value on an edge may round to either side
