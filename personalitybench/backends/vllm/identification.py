"""Identification on vLLM: answers at the engine's full speed, then the same engine reads them and counts.

One engine does both, or counts while it answers. A request that is to be counted says so; for the others the plug-in
is idle. Reading finds the prompts' keys and values in the prefix cache, as far as it still holds them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from personalitybench.activations.bins import Bins
from personalitybench.activations.identification import Counting, Decoding, Report, part_of, questions_by_part
from personalitybench.activations.statistics import GateStatistics, StatisticsSource, join_neurons
from personalitybench.backends.end_tokens import end_of_turn
from personalitybench.backends.vllm.engine import engine_arguments
from personalitybench.backends.wishes import KEY
from personalitybench.chat_templates import bound_chat_template
from personalitybench.errors import DataError, ModelError
from personalitybench.files import JsonLines

_WRITTEN_AT_A_TIME = 64  # answers between two writes; a kill loses at most these


class VllmEngine:
    """What identification needs of a model, on vLLM.

    Args:
        model: Local path or hub name.
        model_args: Arguments of ``vllm.LLM``, such as ``dtype``, ``tensor_parallel_size``, ``max_model_len``.
        batch_size: The most sequences at once; vLLM's own limit if that is more.
        counting: What will be counted; where something else is, the engine is started a second time.
    """

    def __init__(
        self, model: str, model_args: Mapping[str, Any], batch_size: int, counting: Counting | None = None
    ) -> None:
        self.model = model
        self.model_args = dict(model_args)
        self.batch_size = batch_size
        self._llm: Any = None
        self._room = _full(counting or Counting())
        self._served = 0

    def chat_prompt(self, turn: str) -> str:
        """Write a user turn by the model's chat template.

        Raises:
            ModelError: The model has none.
        """
        tokenizer = self._engine(self._room).get_tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(f"{self.model} has no chat template: npti identifies with the turns of a chat")
        bound_chat_template(tokenizer)
        messages = [{"role": "user", "content": turn}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def generate(
        self, prompts: Sequence[tuple[str, str]], *, decoding: Decoding, lines: JsonLines, report: Report
    ) -> None:
        """Answer prompts greedily and append each answer to a file; what is in the file already is passed over.

        Answers come in the order in which they finish. In low precision an answer may depend on what is answered
        beside it, so a run that was cut and resumed may hold other answers than one that was not.
        """
        self._engine(self._room)
        self._answer(prompts, decoding, lines, partial(report, "answers"))

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

        Raises:
            ModelError: Other tokens were counted than were generated.
        """
        llm = self._engine(_full(Counting(max(shards, self._room.shards), bins, while_decoding=True)))
        llm.collective_rpc("personalitybench_clear_statistics")
        self._read(list(lines.read()), shards, partial(report, "answers of an earlier session"))
        self._answer(prompts, decoding, lines, partial(report, "answers and statistics"), shards=shards)
        return self._counted(list(lines.read()), source, shards)

    def read(
        self,
        lines: JsonLines,
        source: StatisticsSource,
        *,
        shards: int,
        report: Report,
        bins: Bins | None = None,
    ) -> GateStatistics:
        """Run prompts and answers through the model and count its gate activations over the answers' tokens.

        Raises:
            DataError: There is no answer.
            NeedsNotMetError: The model has no gates that can be read.
            ModelError: Other tokens were counted than the answers have.
        """
        rows = list(lines.read())
        if not rows:
            raise DataError(f"{lines.path} holds no answer: generate the answers first")
        room = _full(replace(self._room, shards=max(shards, self._room.shards), bins=bins))
        self._engine(room).collective_rpc("personalitybench_clear_statistics")
        self._read(rows, shards, partial(report, "statistics"))
        return self._counted(rows, source, shards)

    def close(self) -> None:
        """Let the engine go."""
        self._llm = None

    def _engine(self, room: Counting) -> Any:
        """The engine, started again if it was started for something else."""
        if self._llm is None or room != self._room:
            from vllm import LLM  # noqa: PLC0415 (optional)

            self._llm = None  # before the next one takes its memory
            self._room = room
            given = {"max_num_seqs": max(self.batch_size, 256), **self.model_args}
            if room.while_decoding:
                # Else a step is begun before it is known which answers the last one ended: their end tokens are read,
                # and would be counted.
                given["async_scheduling"] = False
            options = {"statistics": {"shards": room.shards, "bins": asdict(room.bins or Bins.default())}}
            self._llm = LLM(self.model, **engine_arguments(given, options))
        return self._llm

    def _answer(
        self,
        prompts: Sequence[tuple[str, str]],
        decoding: Decoding,
        lines: JsonLines,
        report: Callable[[int, int], None],
        *,
        shards: int | None = None,
    ) -> None:
        """Answer the prompts that are not in the file; count them in so many shards, or not."""
        from vllm import SamplingParams  # noqa: PLC0415 (optional)

        done = {row["id"] for row in lines.read()}
        tokenizer = self._llm.get_tokenizer()
        bound_chat_template(tokenizer)
        turn = end_of_turn(tokenizer)

        def asked() -> Iterator[tuple[str, list[int], Any]]:
            for identity, text in prompts:
                if identity not in done:
                    params = SamplingParams(
                        temperature=0.0,
                        max_tokens=decoding.max_tokens,
                        repetition_penalty=decoding.repetition_penalty,
                        stop_token_ids=None if turn is None else [turn],
                        extra_args=None if shards is None else {KEY: {"shard": part_of(identity, shards)}},
                    )
                    yield identity, tokenizer.encode(text, add_special_tokens=False), params

        finished: list[dict[str, Any]] = []

        def keep(identity: str, output: Any) -> None:
            answer = output.outputs[0]
            finished.append(
                {
                    "id": identity,
                    "prompt_tokens": list(output.prompt_token_ids),
                    "answer_tokens": list(answer.token_ids),
                    "answer": answer.text,
                }
            )
            if len(finished) >= _WRITTEN_AT_A_TIME:
                flush()

        def flush() -> None:
            lines.append(finished)
            done.update(row["id"] for row in finished)
            finished.clear()
            report(len(done), len(prompts))

        try:
            self._serve(list(asked()), keep)
        finally:
            if finished:
                flush()

    def _read(self, rows: Sequence[Mapping[str, Any]], shards: int, report: Callable[[int, int], None]) -> None:
        """Have answers read and counted; the newest first, whose prompts the cache is most likely to hold."""
        from vllm import SamplingParams  # noqa: PLC0415 (optional)

        asked = []
        for row in reversed(rows):
            prompt, answer = row["prompt_tokens"], row["answer_tokens"]
            if len(answer) < 2:
                continue  # its only token was never an input
            params = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                detokenize=False,
                extra_args={KEY: {"shard": part_of(row["id"], shards), "answer_from": len(prompt)}},
            )
            asked.append((row["id"], [*prompt, *answer[:-1]], params))
        read = len(rows) - len(asked)

        def count(_identity: str, _output: Any) -> None:
            nonlocal read
            read += 1
            if read % _WRITTEN_AT_A_TIME == 0 or read == len(rows):
                report(read, len(rows))

        self._serve(asked, count)

    def _counted(self, rows: Sequence[Mapping[str, Any]], source: StatisticsSource, shards: int) -> GateStatistics:
        """What all devices counted, joined, if it is what some answers have."""
        questions = questions_by_part([row["id"] for row in rows], shards)
        unused = [0] * (self._room.shards - shards)
        with tempfile.TemporaryDirectory() as folder:
            arguments = (folder, source.model_dump_json(), [*questions, *unused])
            parts = self._llm.collective_rpc("personalitybench_save_statistics", args=arguments)
            found = join_neurons([GateStatistics.load(Path(part)) for part in sorted(parts)])
        wanted = [0] * shards
        for row in rows:
            wanted[part_of(row["id"], shards)] += max(len(row["answer_tokens"]) - 1, 0)
        if found.manifest.tokens != (*wanted, *unused):
            raise ModelError(
                f"{sum(found.manifest.tokens)} tokens were counted where the answers have {sum(wanted)} that count: "
                "this engine runs steps that no answer has; please report the arguments that it was started with"
            )
        update = {"tokens": tuple(wanted), "questions": tuple(questions)}
        return GateStatistics(found.manifest.model_copy(update=update), found.active[:shards], found.histogram)

    def _serve(self, asked: Iterable[tuple[str, list[int], Any]], finished: Callable[[str, Any], None]) -> None:
        """Have the engine serve requests, and hand on each as it finishes."""
        from vllm import TokensPrompt  # noqa: PLC0415 (optional)

        engine = self._llm.llm_engine
        waiting: dict[str, str] = {}
        for identity, tokens, params in asked:
            request_id = f"personalitybench-{self._served}"
            self._served += 1
            waiting[request_id] = identity
            engine.add_request(request_id, TokensPrompt(prompt_token_ids=tokens), params)
        try:
            while waiting and engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        finished(waiting.pop(output.request_id), output)
        finally:
            if waiting:
                engine.abort_request(list(waiting))
        if waiting:
            raise ModelError(f"vLLM left {len(waiting)} requests unanswered")


def _full(counting: Counting) -> Counting:
    return replace(counting, bins=counting.bins or Bins.default())
