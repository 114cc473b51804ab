"""Answers end at the chat's end token where that of the weights is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from personalitybench.activations.identification_transformers import stop_tokens  # noqa: E402
from personalitybench.backends.end_tokens import end_of_turn  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402
from personalitybench.backends.whole_answers import added_end_tokens, require_whole_answers  # noqa: E402
from personalitybench.tasks import PersonalityTask  # noqa: E402
from personalitybench.training.examples import ChatTokens  # noqa: E402
from tests.test_steerable import PROMPTS, request, save  # noqa: E402

pytestmark = pytest.mark.model

END_OF_TURN, OTHER = 2, 0


@pytest.fixture(scope="module")
def base_ended(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with another end token in its weights' configurations."""
    folder = tmp_path_factory.mktemp("models") / "base-ended"
    shutil.copytree(tiny_model, folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": OTHER}))
    return folder


def load(folder: Path, backend: str) -> Any:
    """A model that ends its turn after a third of all tokens, and then goes on with another one."""
    lm = load_model(backend, {"pretrained": str(folder), "dtype": "float32"}, 8, "cpu")

    def end(_model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        output.logits[:, -1, END_OF_TURN] += 9.0 * (tokens[:, -1] % 3 == 0)

    lm.model.register_forward_hook(end, with_kwargs=True)
    return lm


@pytest.mark.parametrize("backend", ["hf", "personalitybench-hf"])
def test_answers_of_a_batch_are_those_of_the_prompts_alone(base_ended: Path, backend: str, tmp_path: Path) -> None:
    lm = load(base_ended, backend)
    folder = save(tmp_path / "added", 3.0) if backend != "hf" else None
    asked = [request(prompt, folder) for prompt in PROMPTS[:3]]
    together = lm.generate_until(asked, disable_tqdm=True)
    assert together == [lm.generate_until([one], disable_tqdm=True)[0] for one in asked]
    lengths = [len(lm.tok_encode(answer)) for answer in together]
    assert len(set(lengths)) > 1, "they end at different places"
    assert lm.model.generation_config.eos_token_id == [OTHER, END_OF_TURN]
    assert stop_tokens(lm.model, lm.tokenizer) == [OTHER, END_OF_TURN]


def test_a_model_of_lm_eval_s_own_gets_them_from_the_task(base_ended: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(base_ended), dtype="float32", device="cpu")
    task = PersonalityTask({"task": "t", "metadata": {"target": "openness:high", "judge": None}})
    task.build_all_requests(limit=1, apply_chat_template=True, chat_template=lm.apply_chat_template)
    assert lm.model.generation_config.eos_token_id == [OTHER, END_OF_TURN]
    assert task.identity()["protocol"]["other"] == {"end_tokens": [END_OF_TURN]}


def test_where_the_weights_have_them_nothing_changes(lm: Any) -> None:
    require_whole_answers(lm)
    assert added_end_tokens(lm) == []
    assert lm.model.generation_config.eos_token_id == END_OF_TURN


def test_examples_of_a_training_end_there_too(base_ended: Path) -> None:
    lm = load(base_ended, "hf")
    tokens = ChatTokens(lm, stop_tokens(lm.model, lm.tokenizer))
    assert tokens.answer("Why?", "So.")[-1] == END_OF_TURN


@pytest.mark.parametrize(
    ("template", "token"),
    [
        ("{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}", END_OF_TURN),
        ("{% for m in messages %}{{ m.content }} <|endoftext|>{% endfor %}", OTHER),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{{ messages[0].content }}", None),
        ("{{ raise_exception('only one turn') }}", None),
    ],
)
def test_the_end_of_a_turn_is_the_special_token_after_it(tiny_model: Path, template: str, token: int | None) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) == token
