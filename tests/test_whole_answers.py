"""Prompts are never cut in silence, and thoughts of local models that never end are no answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.api_models import JsonChatStr

from personalitybench.backends.loading import load_model
from personalitybench.backends.whole_answers import ThinkingModel, require_whole_answers, require_whole_prompts
from personalitybench.completions import NoAnswer
from personalitybench.errors import ConfigurationError

Command = Callable[..., subprocess.CompletedProcess[str]]
SUITE = """
name: narrow
models: [{{name: {model}, backend: {backend}, args: {{dtype: float32, max_length: {context}}}}}]
methods: [none, p2]
targets: [extraversion:high]
questions: {{limit: 2}}
protocol: {{max_tokens: 100}}
floors: false
"""


def request(prompt: str, new: int = 4) -> Instance:
    settings = {"max_gen_toks": new, "until": [], "do_sample": False}
    return Instance("generate_until", {"id": "q1"}, (prompt, settings), 0)


@pytest.fixture(scope="module")
def thinking(tiny_model: Path) -> Callable[[str], Any]:
    def load(end: str) -> Any:
        args = {"pretrained": str(tiny_model), "dtype": "float32", "think_end_token": end}
        return load_model("hf", args, 2, "cpu")

    return load


def test_prompts_that_fit_exactly_pass_and_one_token_more_is_refused(lm: Any) -> None:
    prompt = "Hello there, how are you today?"
    room = lm.max_length - len(lm.tok_encode(prompt))
    require_whole_prompts(lm, [request(prompt, room)])
    with pytest.raises(ConfigurationError, match=r"question 'q1': 2 prompts would be cut: \d+ tokens and \d+ new ones"):
        require_whole_prompts(lm, [request("short"), *[request(prompt, room + 1)] * 2])


@pytest.mark.parametrize("backend", ["hf", pytest.param("personalitybench-hf", marks=pytest.mark.slow)])
def test_run_and_dry_run_refuse_prompts_that_would_be_cut(
    backend: str, tiny_model: Path, tmp_path: Path, command: Command
) -> None:
    suite = tmp_path / "narrow.yaml"
    suite.write_text(SUITE.format(model=tiny_model, backend=backend, context=140))
    for option in ("--dry-run", "--stage=generate"):
        done = command("run", str(suite), "--output", str(tmp_path / "out"), option)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "2 prompts would be cut" in done.stderr
        assert "exceed the model's context of 140" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/calls/*/*/answers.json"))


def test_context_of_the_configuration_is_refused_by_the_dry_run(
    tiny_model: Path, tmp_path: Path, command: Command
) -> None:
    model = tmp_path / "narrow"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 140}))
    suite = tmp_path / "narrow.yaml"
    suite.write_text(SUITE.format(model=model, backend="hf", context="null"))
    done = command("run", str(suite), "--dry-run")
    assert done.returncode == 2
    assert "exceed the model's context of 140" in done.stderr


def test_lm_eval_refuses_prompts_that_would_be_cut(tiny_model: Path, command: Command) -> None:
    done = command(
        *("lm-eval", "--tasks", "personalitybench_extraversion_high", "--apply_chat_template", "--limit", "1"),
        *("--model", "hf", "--model_args", f"pretrained={tiny_model},dtype=float32,max_length=420"),
    )
    assert done.returncode == 2, done.stderr
    assert "would be cut" in done.stderr.splitlines()[-1]


def test_lm_eval_examples_are_refused(tiny_model: Path, command: Command) -> None:
    done = command(
        *("lm-eval", "--tasks", "personalitybench_extraversion_high", "--apply_chat_template", "--limit", "1"),
        *("--model", "dummy", "--num_fewshot", "1"),
    )
    assert done.returncode == 2, done.stderr
    assert "remove --num_fewshot" in done.stderr.splitlines()[-1]


def test_unfinished_thoughts_of_transformers_are_no_answer(thinking: Callable[[str], Any]) -> None:
    model = thinking("</think>")
    assert isinstance(model, ThinkingModel)
    assert require_whole_answers(model) == "</think>"
    (answer,) = model.generate_until([request("Hello")], disable_tqdm=True)
    assert isinstance(answer, NoAnswer)
    assert answer.reason == "unfinished-thoughts"


def test_ended_thoughts_of_transformers_are_cut(thinking: Callable[[str], Any], lm: Any) -> None:
    tokens = [token for part in ("So I think", "Yes, gladly.") for token in lm.tok_encode(part)]
    end = lm.tok_encode("Yes")[0]
    for setting, whole in (("Yes", ", gladly."), (str(end), ", gladly.")):
        model = thinking(setting)
        model._model_generate = lambda context, **_: torch_append(context, tokens)
        assert model.generate_until([request("Hello", len(tokens))], disable_tqdm=True) == [whole]
        assert model.tok_decode(lm.tok_encode("So")) == "So", "other texts are decoded as ever"


def torch_append(context: Any, tokens: list[int]) -> Any:
    import torch

    return torch.cat([context, torch.tensor([tokens])], dim=1)


def test_number_of_a_token_that_never_comes_is_unfinished(thinking: Callable[[str], Any]) -> None:
    (answer,) = thinking("17").generate_until([request("Hello")], disable_tqdm=True)
    assert isinstance(answer, NoAnswer)


class FakeVllm(TemplateLM):
    """As lm-eval's vLLM model: texts are read from the outputs of ``_model_generate``."""

    think_end_token: Any = "</think>"  # noqa: S105 (no password)
    eot_token_id = 0
    tok_encode = loglikelihood_rolling = _loglikelihood_tokens = None  # type: ignore[assignment]

    def _model_generate(self, texts: list[str]) -> list[Any]:
        return [SimpleNamespace(outputs=[SimpleNamespace(text=text)]) for text in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        outputs = self._model_generate([request.args[0] for request in requests])
        return [output.outputs[0].text.split(self.think_end_token)[-1] for output in outputs]


def test_unfinished_thoughts_of_vllm_are_no_answer() -> None:
    model = FakeVllm()
    assert require_whole_answers(model) == "</think>"
    answers = model.generate_until([request("hm</think>Yes."), request("hm, well")])
    assert answers == ["Yes.", ""]
    assert [isinstance(answer, NoAnswer) for answer in answers] == [False, True]


def prompt_request(prompt: Any) -> Instance:
    return Instance("generate_until", {"id": "q1"}, (prompt, {}), 0)


@pytest.mark.parametrize(
    "prompt", ["<|system|>Be “kind”.\n<|user|>Hi", json.dumps([{"role": "system", "content": "Be “kind”."}])]
)
def test_prompts_with_the_system_text_are_taken(prompt: str) -> None:
    from personalitybench.backends.whole_answers import require_system_text

    require_system_text(" Be “kind”.\n", [prompt_request(prompt), prompt_request(JsonChatStr(prompt))])
    require_system_text(None, [prompt_request("Hi")])


@pytest.mark.parametrize("prompt", ["<|user|>Hi", json.dumps([{"role": "user", "content": "Hi"}])])
def test_prompts_without_the_system_text_are_refused(prompt: str) -> None:
    """lm-eval removes the system turn where a template raises for it, as Gemma's does."""
    from personalitybench.backends.whole_answers import require_system_text

    with pytest.raises(ConfigurationError, match="lacks the text of --system_instruction"):
        require_system_text("Be kind.", [prompt_request("<|system|>Be kind.<|user|>Hi"), prompt_request(prompt)])
