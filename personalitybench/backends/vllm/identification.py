"""Identification on vLLM: answers at the engine's full speed, then the same engine reads them and counts.

One engine does both. While it generates, the plug-in is idle; a request that is to be counted says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from personalitybench.activations.bins import Bins
from personalitybench.activations.identification import Decoding, Report, part_of
from personalitybench.activations.statistics import GateStatistics, StatisticsSource, join_neurons
from personalitybench.backends.vllm.engine import engine_arguments
from personalitybench.backends.wishes import KEY
from personalitybench.errors import DataError, ModelError
from personalitybench.files import JsonLines

SHARDS = 20
"""Parts that an engine has room for if nothing else is said."""

_WRITTEN_AT_A_TIME = 64  # answers between two writes; a kill loses at most these


class VllmEngine:
    """What identification needs of a model, on vLLM.

    Args:
        model: Local path or hub name.
        model_args: Arguments of ``vllm.LLM``, such as ``dtype``, ``tensor_parallel_size``, ``max_model_len``.
        batch_size: The most sequences at once; vLLM's own limit if that is more.
    """

    def __init__(self, model: str, model_args: Mapping[str, Any], batch_size: int) -> None:
        self.model = model
        self.model_args = dict(model_args)
        self.batch_size = batch_size
        self._llm: Any = None
        self._room = (SHARDS, Bins.default())
        self._served = 0

    def chat_prompt(self, turn: str) -> str:
        """Write a user turn by the model's chat template.

        Raises:
            ModelError: The model has none.
        """
        tokenizer = self._engine().get_tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(f"{self.model} has no chat template: npti identifies with the turns of a chat")
        messages = [{"role": "user", "content": turn}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def generate(
        self, prompts: Sequence[tuple[str, str]], *, decoding: Decoding, lines: JsonLines, report: Report
    ) -> None:
        """Answer prompts greedily and append each answer to a file; what is in the file already is passed over.

        Answers come in the order in which they finish. In low precision an answer may depend on what is answered
        beside it, so a run that was cut and resumed may hold other answers than one that was not.
        """
        from vllm import SamplingParams  # noqa: PLC0415 (optional)

        done = {row["id"] for row in lines.read()}
        llm = self._engine()
        tokenizer = llm.get_tokenizer()
        params = SamplingParams(
            temperature=0.0, max_tokens=decoding.max_tokens, repetition_penalty=decoding.repetition_penalty
        )
        asked = [
            (identity, tokenizer.encode(text, add_special_tokens=False), params)
            for identity, text in prompts
            if identity not in done
        ]
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
            report("answers", len(done), len(prompts))

        try:
            self._serve(asked, keep)
        finally:
            if finished:
                flush()

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
        """
        from vllm import SamplingParams  # noqa: PLC0415 (optional)

        rows = list(lines.read())
        if not rows:
            raise DataError(f"{lines.path} holds no answer: generate the answers first")
        llm = self._engine(shards, bins or Bins.default())
        questions = [0] * self._room[0]
        asked = []
        for row in rows:
            part = part_of(row["id"], shards)
            questions[part] += 1
            prompt, answer = row["prompt_tokens"], row["answer_tokens"]
            if len(answer) < 2:
                continue  # its only token was never an input
            params = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                detokenize=False,
                extra_args={KEY: {"shard": part, "answer_from": len(prompt)}},
            )
            asked.append((row["id"], [*prompt, *answer[:-1]], params))
        llm.collective_rpc("personalitybench_clear_statistics")
        read = len(rows) - len(asked)

        def count(_identity: str, _output: Any) -> None:
            nonlocal read
            read += 1
            if read % _WRITTEN_AT_A_TIME == 0 or read == len(rows):
                report("statistics", read, len(rows))

        self._serve(asked, count)
        with tempfile.TemporaryDirectory() as folder:
            arguments = (folder, source.model_dump_json(), questions)
            parts = llm.collective_rpc("personalitybench_save_statistics", args=arguments)
            found = join_neurons([GateStatistics.load(Path(part)) for part in sorted(parts)])
        manifest = found.manifest.model_copy(
            update={"tokens": found.manifest.tokens[:shards], "questions": found.manifest.questions[:shards]}
        )
        return GateStatistics(manifest, found.active[:shards], found.histogram)

    def close(self) -> None:
        """Let the engine go."""
        self._llm = None

    def _engine(self, shards: int = SHARDS, bins: Bins | None = None) -> Any:
        """The engine, started again if it has no room for these counts."""
        wanted = (max(shards, self._room[0]), bins or self._room[1])
        if self._llm is None or wanted != self._room:
            from vllm import LLM  # noqa: PLC0415 (optional)

            self._llm = None  # before the next one takes its memory
            self._room = wanted
            room = {"shards": wanted[0], "bins": asdict(wanted[1])}
            arguments = engine_arguments(
                {"max_num_seqs": max(self.batch_size, 256), **self.model_args}, {"statistics": room}
            )
            self._llm = LLM(self.model, **arguments)
        return self._llm

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
