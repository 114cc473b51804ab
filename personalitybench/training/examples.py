"""Examples of a training: which are drawn, which are held out, and their tokens as the evaluation will have them.

All choices are made by hashes of what an example says, so they depend neither on the order in which examples come nor
on the machine. No torch here.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from personalitybench.errors import DataError, ModelError

T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """An answer to learn from, as text.

    Attributes:
        id: What the example is called; no two of a target have the same.
        question: The question, which decides whether the example is held out.
        answer: The answer.
        tokens: Its tokens where a model wrote it, with the end token if it came; None where they are not known.
    """

    id: str
    question: str
    answer: str
    tokens: tuple[int, ...] | None = None

    @property
    def says_something(self) -> bool:
        """Whether there is any text. What a model wrote counts to the letter; a template may strip other text."""
        return bool(self.answer if self.tokens is not None else self.answer.strip())


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to learn, as tokens.

    Attributes:
        id: As :attr:`Answered.id`.
        question: As :attr:`Answered.question`.
        prompt: Tokens of the prompt; they carry no loss.
        answer: Tokens of the answer.
    """

    id: str
    question: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class ExampleSet:
    """The examples of a target.

    Attributes:
        train: Those that are trained on.
        held_out: Those of the held-out loss; they share no question with the others.
        empty: Answers that were left out because they say nothing.
        too_long: Answers that were left out because prompt and answer have too many tokens.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    empty: int
    too_long: int


class ChatTokens:
    """Writes prompts and answers as tokens, as lm-eval does when it asks.

    Args:
        lm: lm-eval's transformers model.
        stops: Tokens that end an answer.

    Raises:
        ModelError: The model has no chat template.
    """

    def __init__(self, lm: Any, stops: Sequence[int]) -> None:
        if getattr(lm.tokenizer, "chat_template", None) is None:
            raise ModelError(
                f"{lm.tokenizer.name_or_path} has no chat template: adapters are trained on the turns of a chat, so "
                "name a model that was tuned for chats"
            )
        self._lm = lm
        self._stops = frozenset(stops)

    def prompt(self, turn: str) -> tuple[int, ...]:
        """The tokens that a request with this user turn is served with.

        lm-eval's own functions write and encode it: they know when the template has a beginning token already.
        """
        ids, _ = self._lm.tok_batch_encode([self._prompt_text(turn)])
        return tuple(ids[0].tolist())

    def answer(self, turn: str, text: str) -> tuple[int, ...]:
        """The tokens of an answer that comes as text, with the token that ends the assistant's turn.

        Raises:
            ModelError: The chat template leaves the answer out.
        """
        tokenizer, prompt = self._lm.tokenizer, self._prompt_text(turn)
        chat = [{"role": "user", "content": turn}, {"role": "assistant", "content": text}]
        whole = str(tokenizer.apply_chat_template(chat, tokenize=False, **self._lm.chat_template_args))
        # Some templates leave out of a finished turn what they open it with (a tag for thoughts, say).
        start = len(prompt) if whole.startswith(prompt) else whole.rfind(text.strip())
        if start < 0:
            raise ModelError(
                f"the chat template of {tokenizer.name_or_path} does not show what the assistant said, so an answer "
                "cannot be trained on"
            )
        tokens = tokenizer(whole[start:], add_special_tokens=False)["input_ids"]
        for place, token in enumerate(tokens):
            if token in self._stops:
                return tuple(tokens[: place + 1])
        ending = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        return (*tokens, *ending)

    def _prompt_text(self, turn: str) -> str:
        return str(self._lm.apply_chat_template([{"role": "user", "content": turn}]))


def make_examples(
    answered: Iterable[Answered],
    tokens: ChatTokens,
    turn_of: Callable[[str], str],
    *,
    where: str,
    seed: int,
    most: int | None = None,
    held_out: float = 0.1,
    max_length: int = 1024,
) -> ExampleSet:
    """Make the examples of a target.

    Args:
        answered: All answers that there are.
        tokens: Writes tokens.
        turn_of: The user turn for a question.
        where: Which answers these are, for errors.
        seed: Of the draw and of the split.
        most: How many examples are drawn, held-out ones among them; all if None or if there are no more.
        held_out: Share of the questions that is held out; at least one is.
        max_length: Tokens of prompt and answer; longer examples are left out.

    Raises:
        DataError: Nothing is left to train on, or there are not two questions.
    """
    everything = list(answered)
    saying = [one for one in everything if one.says_something]
    found, too_long = [], 0
    for one in draw(saying, lambda one: one.id, most, seed):
        turn = turn_of(one.question)
        answer = tokens.answer(turn, one.answer) if one.tokens is None else one.tokens
        example = Example(one.id, one.question, tokens.prompt(turn), answer)
        if len(example) > max_length:
            too_long += 1
        else:
            found.append(example)
    empty = len(everything) - len(saying)
    if len({example.question for example in found}) < 2:
        raise DataError(
            f"{where}: {len(found)} of {len(everything)} answers can be trained on ({empty} say nothing, {too_long} "
            f"have more than {max_length} tokens with their prompt), and an adapter needs those of two questions at "
            "least, one of them held out: give more questions, or raise max_length"
        )
    train, kept = split(found, held_out, seed)
    return ExampleSet(tuple(train), tuple(kept), empty, too_long)


def draw(items: Iterable[T], identity: Callable[[T], str], most: int | None, seed: int) -> list[T]:
    """Draw items by a hash of the seed and their identity, whatever order they come in.

    Returns:
        At most ``most`` items (all if None), in the order of their hashes.
    """
    return sorted(items, key=lambda item: digest(seed, "example", identity(item)))[:most]


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out the questions whose hashes come first: a share of them, at least one, never all.

    Returns:
        Examples to train on, and held-out ones.
    """
    questions = sorted({example.question for example in examples}, key=lambda text: digest(seed, "held out", text))
    count = min(max(1, math.floor(share * len(questions) + 0.5)), len(questions) - 1)
    chosen = set(questions[:count])
    train = [example for example in examples if example.question not in chosen]
    return train, [example for example in examples if example.question in chosen]


def epoch_order(examples: Iterable[Example], seed: int, target: str, epoch: int) -> list[Example]:
    """The order in which an epoch takes its examples."""
    return sorted(examples, key=lambda example: digest(seed, "order", target, epoch, example.id))


def with_ids(answers: Iterable[tuple[str, str]]) -> list[Answered]:
    """Call answers by what they say; those that are the same are numbered."""
    seen: Counter[str] = Counter()
    found = []
    for question, answer in answers:
        name = digest(question, answer).hex()[:16]
        seen[name] += 1
        found.append(Answered(f"{name}-{seen[name]}", question, answer))
    return found


def digest(*parts: object) -> bytes:
    """Hash of parts that belong together, 32 bytes."""
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()


def derived_seed(*parts: object) -> int:
    """A seed for torch, of parts that belong together."""
    return int.from_bytes(digest(*parts)[:7])
