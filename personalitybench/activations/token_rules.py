"""Which tokens of a batch are counted, decided by each token's absolute position in its own sequence.

Between a model that reads answers and :mod:`personalitybench.activations.statistics`, which counts. Batch size,
padding, chunks and preemption do not enter, so the same answers give the same counts however they were run.
"""

from __future__ import annotations

from typing import get_args

import torch

from personalitybench.activations.statistics_files import TokenRule
from personalitybench.errors import ConfigurationError


def token_mask(
    attention_mask: torch.Tensor,
    prompt_lengths: torch.Tensor,
    answer_lengths: torch.Tensor,
    rule: TokenRule = "answer",
) -> torch.Tensor:
    """Mark the tokens whose activations are counted.

    A sequence of ``P`` prompt tokens and ``A`` answer tokens has positions 0 to ``P + A - 1``. Generation feeds the
    model the prompt (the prefill, which gives the first answer token) and then one answer token at a time: positions
    ``P`` to ``P + A - 2``. The last answer token is never an input, so an answer of ``A`` tokens has ``A - 1`` that
    count, and one of at most one token has none. ``A`` counts every generated token, the end token too: leave it out
    of ``A`` and the last word would be missed.

    Rules:
        ``answer``: positions ``P <= p <= P + A - 2``.
        ``released-code``: the decode steps alone, as the paper's script counts (``search_neuron.py``). The script
            tells a decode step by a call of at most 32 rows. The prefill's last row, ``P - 1``, which gives the first
            answer token, is left out; the step that reads this token, ``P``, is counted. These are the same positions
            as those of ``answer``. The name tells the manifest that parity was meant. What the script counts by
            accident is not imitated: prompt tokens, when a prefill call has at most 32 rows; and it misses decode
            steps of more than 32 sequences.

    Args:
        attention_mask: [batch, tokens], 1 for tokens and 0 for padding, which is all on the left or all on the right.
            Rows may be longer than prompt and answer: what generation appends to finished rows is not counted.
        prompt_lengths: Integers [batch], tokens of each prompt, at least 1.
        answer_lengths: Integers [batch], generated tokens of each answer, 0 or more.
        rule: Which tokens count.

    Returns:
        bool [batch, tokens], on the device of ``attention_mask``.

    Raises:
        ConfigurationError: Unknown rule, shapes that do not fit, padding within a row, or a row that is too short.
    """
    if rule not in get_args(TokenRule):
        raise ConfigurationError(f"unknown token rule {rule!r}: known are {', '.join(get_args(TokenRule))}")
    if attention_mask.ndim != 2 or any(x.shape != attention_mask.shape[:1] for x in (prompt_lengths, answer_lengths)):
        raise ConfigurationError(
            f"attention mask {list(attention_mask.shape)}, prompt lengths {list(prompt_lengths.shape)}, answer lengths "
            f"{list(answer_lengths.shape)}: they must be [batch, tokens], [batch] and [batch]"
        )
    real = attention_mask.bool()
    first = prompt_lengths.to(real.device, torch.int64)
    answer = answer_lengths.to(real.device, torch.int64)
    end = first + answer - 1  # behind the last input of a decode step
    _check_rows(real, first, answer)
    position = real.long().cumsum(1) - 1
    return real & (position >= first[:, None]) & (position < end[:, None])


def _check_rows(real: torch.Tensor, prompts: torch.Tensor, answers: torch.Tensor) -> None:
    if not real.numel():
        return
    pieces = real[:, 0].long() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    needed = prompts + (answers - 1).clamp(min=0)
    problems = {
        "has padding between its tokens": pieces > 1,
        "has a prompt of no tokens or an answer of fewer than none": (prompts < 1) | (answers < 0),
        "is shorter than its prompt and the answer tokens that were read": real.sum(1) < needed,
    }
    for problem, rows in problems.items():
        if bool(rows.any()):
            row = int(rows.nonzero()[0])
            raise ConfigurationError(
                f"row {row} of the batch {problem}: {int(real[row].sum())} tokens are given, "
                f"prompt {int(prompts[row])}, answer {int(answers[row])}"
            )
