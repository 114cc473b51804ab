"""A judge that is any model lm-eval can load: the expected rating by its probabilities of 1 to 5, nothing generated.

The model is told what a rubric says, its reply is opened (``[[``), and what counts is how likely each rating is to come
next. That uses all that the model believes, needs no sampling and no parser, and costs one pass an answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from personalitybench.errors import ConfigurationError, JudgeError, ModelError
from personalitybench.files import content_hash
from personalitybench.judging.base import (
    FLUENCY,
    JudgeProfile,
    Rating,
    RatingRequest,
    RatingsReport,
    Unrated,
    Verdict,
)
from personalitybench.judging.rubrics import load_rubric
from personalitybench.model_identity import model_record
from personalitybench.validation import validate

RATINGS = ("1", "2", "3", "4", "5")

# Part of the identity: raise it when the same model and rubric would rate differently.
_FORMAT = 1
_DIGITS = 4
_FEWEST_AT_A_TIME = 8

Probabilities = Sequence[float]
"""Of each of :data:`RATINGS`, among all that the model could write next."""


class LocalLogitsSettings(BaseModel):
    """``settings`` of a profile: what decides its ratings. Words as in a suite's ``model``.

    Attributes:
        model: Local folder, hub name, or ``demo``; for an API the model's name there.
        revision: Hub revision.
        backend: lm-eval model type that tells likelihoods: ``hf``, ``vllm``, ``local-completions``.
        args: Its arguments besides the model's name, as ``--model_args``.
        rubric: What it judges by; one rating a reply.
        opening: How its reply is begun for it; the rating is what comes next.
        apply_chat_template: Whether the prompt is the turns of a chat; ``auto``: if the tokenizer has a template.
        least_mass: The least probability of all five ratings together, below which there is no rating.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    revision: str | None = None
    backend: str = "hf"
    args: dict[str, Any] = Field(default_factory=dict)
    rubric: str = "direct"
    opening: str = Field(default="[[", pattern=r"\S$")  # lm-eval moves blanks at the end over to the rating
    apply_chat_template: Literal["auto"] | bool = "auto"
    least_mass: float = Field(default=0.25, ge=0.0, le=1.0)


class LocalLogitsOptions(BaseModel):
    """``client`` of a profile.

    Attributes:
        batch_size: Answers at a time. Alone, an answer's rating cannot depend on its neighbours; in low precision those
            of a batch may, in the last digits.
        device: Torch device; the default is a GPU if there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=1, ge=1)
    device: str | None = None


class LocalLogitsJudge:
    """Rates answers by the likelihoods of the ratings; see :class:`personalitybench.judging.base.Judge`.

    Args:
        profile: Its profile.

    Raises:
        ConfigurationError: The profile or the rubric is wrong.
    """

    summary: ClassVar[str] = "a model that lm-eval loads: the rating it expects, from the probabilities of 1 to 5"

    def __init__(self, profile: JudgeProfile) -> None:
        self.profile = profile
        where = f"judge profile {profile.id!r}"
        self._settings = validate(LocalLogitsSettings, profile.settings, f"{where}: settings")
        self._options = validate(LocalLogitsOptions, profile.client, f"{where}: client")
        self._rubric = load_rubric(self._settings.rubric)
        if self._rubric.matrix_again is not None:
            raise ConfigurationError(
                f"{where}: rubric {self._rubric.name!r} asks for all traits in one reply, where no single rating comes "
                "next: name one that asks for one rating, such as 'direct'"
            )
        self._at_work = Lock()

    @property
    def at_a_time(self) -> int:
        """As many answers as a batch holds, and a few."""
        return max(_FEWEST_AT_A_TIME, self._options.batch_size)

    @cached_property
    def rubric_sha256(self) -> str:
        """Hash of the rubric and of the model: its files, adapters, tokenizer and chat template.

        Raises:
            ModelError: There is no such model.
        """
        arguments, revision = self._arguments
        model = model_record(self._settings.backend, arguments, revision)
        return content_hash([_FORMAT, self._rubric.sha256, model["revision"]])

    async def rate(self, items: Sequence[RatingRequest], report: RatingsReport | None = None) -> Sequence[Verdict]:
        """Rate items.

        Raises:
            ConfigurationError: The model cannot tell likelihoods.
            ModelError: It cannot be loaded.
            JudgeError: The server does not answer.
        """
        verdicts: list[Verdict] = []
        for start in range(0, len(items), self._options.batch_size):
            batch = items[start : start + self._options.batch_size]
            verdicts += await asyncio.to_thread(self._rate, batch)
            if report is not None:
                report(len(batch))
        return verdicts

    def _rate(self, items: Sequence[RatingRequest]) -> list[Verdict]:
        with self._at_work:  # of several panels at once, say
            reader = self._reader
            contexts = [reader.context(self._rubric.messages(reader.disarm(item))) for item in items]
            verdicts: dict[str, Verdict] = {}
            for context in contexts:
                if (tokens := reader.tokens_too_many(context)) is not None:
                    verdicts[context] = Unrated("too-long", tokens)
            asked = [context for context in dict.fromkeys(contexts) if context not in verdicts]
            for context, probabilities in zip(asked, reader.probabilities(asked), strict=True):
                verdicts[context] = expected_rating(probabilities, self._settings.least_mass)
            return [verdicts[context] for context in contexts]

    @cached_property
    def _arguments(self) -> tuple[dict[str, Any], str | None]:
        from personalitybench.backends.loading import check_model, model_arguments  # noqa: PLC0415 (lm-eval)

        settings = self._settings
        found = model_arguments(settings.backend, settings.model, settings.revision, settings.args)
        check_model(found[0])
        return found

    @cached_property
    def _reader(self) -> _Reader:
        reader = _Reader(self._settings, self._arguments[0], self._options)
        reader.check(self._rubric.messages(RatingRequest("What would you do?", "I would go home.", FLUENCY)))
        return reader


class _Reader:
    """The loaded model: prompts in, probabilities of the ratings out."""

    def __init__(
        self, settings: LocalLogitsSettings, arguments: Mapping[str, Any], options: LocalLogitsOptions
    ) -> None:
        from personalitybench.backends.loading import is_transformers, load_model  # noqa: PLC0415 (lm-eval)

        self._settings = settings
        # In bfloat16 lm-eval's softmax leaves three digits of a probability.
        precise = {"softmax_dtype": "float32"} if is_transformers(settings.backend) else {}
        self._model: Any = load_model(settings.backend, {**precise, **arguments}, options.batch_size, options.device)
        self._tokenizer: Any = getattr(self._model, "tokenizer", None)
        template = getattr(self._tokenizer, "chat_template", None)
        self._is_chat = template is not None if settings.apply_chat_template == "auto" else settings.apply_chat_template
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        texts = {str(token) for token in added.values()}
        self._marks = sorted((text for text in texts if len(text.strip()) > 1), key=lambda text: (-len(text), text))

    def disarm(self, item: RatingRequest) -> RatingRequest:
        """Break what the tokenizer would take for the end of a turn: a chat's own marks, written in an answer."""
        texts = [item.question, item.answer]
        for mark in self._marks:
            texts = [text.replace(mark, f"{mark[0]} {mark[1:]}") for text in texts]
        return replace(item, question=texts[0], answer=texts[1])

    def context(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt with the reply's opening."""
        together = "\n\n".join(message["content"] for message in messages)
        if not self._is_chat:
            return f"{together}\n\n{self._settings.opening}"
        text = str(self._model.apply_chat_template([dict(message) for message in messages]))
        if any(message["content"] not in text for message in messages):  # templates without a system message
            text = str(self._model.apply_chat_template([{"role": "user", "content": together}]))
        return text + self._settings.opening

    def check(self, messages: Sequence[Mapping[str, str]]) -> None:
        """See that each rating is told apart in what follows the opening.

        Raises:
            ModelError: The tokenizer joins the opening with the rating.
        """
        if self._tokenizer is None:
            return
        context = self.context(messages)
        before = self._model.tok_encode(context)
        after = [self._model.tok_encode(context + rating) for rating in RATINGS]
        apart = len({tuple(tokens) for tokens in after}) == len(RATINGS)
        if not apart or any(tokens[: len(before)] != before or len(tokens) == len(before) for tokens in after):
            raise ModelError(
                f"the tokenizer of {self._settings.model} joins {self._settings.opening!r} with the rating after it: "
                "set another 'opening' in the judge's settings, such as 'Rating:'"
            )

    def tokens_too_many(self, context: str) -> str | None:
        """Say that a prompt is longer than the model reads; None where it is not."""
        most = getattr(self._model, "max_length", None)
        if self._tokenizer is None or most is None:
            return None
        tokens = len(self._model.tok_encode(context)) + len(RATINGS[0])
        return None if tokens < most else f"{tokens} tokens, the model reads {most}"

    def probabilities(self, contexts: Sequence[str]) -> list[Probabilities]:
        """How likely each rating is after each context; lm-eval reads a context once for all five."""
        from lm_eval.api.instance import Instance  # noqa: PLC0415 (half a second)

        from personalitybench.backends.loading import quiet_libraries  # noqa: PLC0415 (lm-eval)

        if not contexts:
            return []
        requests = [
            Instance("loglikelihood", {}, (context, rating), idx=number, task_name="", doc_id=number)
            for number, (context, rating) in enumerate((context, rating) for context in contexts for rating in RATINGS)
        ]
        backend = self._settings.backend
        try:
            with quiet_libraries():
                found = self._model.loglikelihood(requests, disable_tqdm=True)
        except (NotImplementedError, AssertionError) as error:  # with either lm-eval's chat models refuse
            raise ConfigurationError(
                f"backend {backend!r} cannot tell how likely a text is ({error}): use 'hf', 'vllm' or "
                "'local-completions', or the provider 'chat' for a server of chats"
            ) from error
        except OSError as error:  # what HTTP libraries raise
            raise JudgeError(f"backend {backend!r}: no answer from the model ({str(error).splitlines()[0]})") from error
        values = [math.exp(likelihood) for likelihood, _ in found]
        return [values[start : start + len(RATINGS)] for start in range(0, len(values), len(RATINGS))]


def expected_rating(probabilities: Probabilities, least_mass: float) -> Verdict:
    """Make a rating of the probabilities of 1 to 5: their mean, weighted with these.

    Args:
        probabilities: Of the five ratings, among all that could come.
        least_mass: What they must be together.

    Returns:
        The rating, with ``mass`` (their sum) and ``probabilities`` (divided by it) as its basis; or unrated:
        ``no-mass``.
    """
    mass = math.fsum(probabilities)
    if not mass > 0.0 or mass < least_mass:
        return Unrated("no-mass", f"{mass:.2g} of the probability on 1 to 5, {least_mass:g} is needed")
    shares = [probability / mass for probability in probabilities]
    value = math.fsum(int(rating) * share for rating, share in zip(RATINGS, shares, strict=True))
    basis = {"mass": round(min(mass, 1.0), _DIGITS), "probabilities": [round(share, _DIGITS) for share in shares]}
    return Rating(round(min(max(value, 1.0), 5.0), _DIGITS), basis=basis)
