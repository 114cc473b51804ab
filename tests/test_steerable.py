"""lm-eval's transformers model with interventions: rows of one batch, the canary, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lm_eval.api.instance import Instance  # noqa: E402

from personalitybench.activations.interventions import Intervention, Operation  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402
from personalitybench.errors import ConfigurationError, ModelError, StorageError  # noqa: E402

pytestmark = pytest.mark.model

SETTINGS = {"until": [], "max_gen_toks": 10, "do_sample": False, "temperature": 0.0, "repetition_penalty": 1.15}
PROMPTS = ["What do you do?", "A friend calls you late in the evening. How do you respond to it?", "And then?", "Why?"]


def request(prompt: str, folder: Path | None = None, strength: float | None = 1.0, **more: Any) -> Instance:
    settings: dict[str, Any] = dict(SETTINGS)
    if folder is not None or more:
        wanted = {"intervention": str(folder), "strength": strength} if folder is not None else {}
        settings["extra_args"] = {"personalitybench": wanted | more}
    return Instance("generate_until", {"id": prompt}, (prompt, settings), idx=0, task_name="", doc_id=0)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model("personalitybench-hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 8, "cpu")


def save(folder: Path, values: float, operation: Operation = Operation.ADD, seed: int = 0) -> Path:
    """An intervention on every neuron of the tiny model (2 layers of 64)."""
    draw = np.random.default_rng(seed)
    layer, index = (part.ravel().astype(np.int32) for part in np.indices((2, 64)))
    value = (values * draw.random(128)).astype(np.float32)
    Intervention((2, 64), layer, index, np.full(128, operation, np.uint8), value).save(folder)
    return folder


def test_each_row_of_a_mixed_batch_gets_what_it_gets_alone(model: Any, tiny_model: Path, tmp_path: Path) -> None:
    first, second = save(tmp_path / "first", 3.0), save(tmp_path / "second", 5.0, seed=1)
    mixed = [
        request(PROMPTS[0]),
        request(PROMPTS[1], first, 0.7),
        request(PROMPTS[2], first, 2.0),
        request(PROMPTS[3], second, 1.0),
        request(PROMPTS[1]),
    ]
    before = model.steered_tokens
    together = model.generate_until(mixed, disable_tqdm=True)
    counted = model.steered_tokens - before
    alone = [model.generate_until([one], disable_tqdm=True)[0] for one in mixed]
    assert together == alone
    assert 3 <= counted <= 3 * 9, "three rows, every token of an answer of ten but the last"
    assert model.steered_tokens - before == 2 * counted
    assert model.get_model_info()["steered_tokens"] == model.steered_tokens
    stock = load_model("hf", {"pretrained": str(tiny_model), "dtype": "float32"}, 8, "cpu")
    plain = stock.generate_until([request(PROMPTS[0]), request(PROMPTS[1])], disable_tqdm=True)
    assert [together[0], together[4]] == plain
    assert together[1] != plain[1]


def test_rows_that_differ_in_what_is_drawn_and_where_steering_begins(model: Any, tmp_path: Path) -> None:
    first, second = save(tmp_path / "first", 3.0), save(tmp_path / "second", 5.0, seed=1)
    mixed = [
        request(PROMPTS[0], first),
        request(PROMPTS[0], first, keep=0.5),
        request(PROMPTS[0], first, keep=0.5, seed=1),
        request(PROMPTS[0], first, keep=0.5, seed=1, first_token=True),
        request(PROMPTS[1], second, first_token=True),
        request(PROMPTS[1]),
        request(PROMPTS[2], second, keep=1.0, seed=7),
        request(PROMPTS[2], second),
    ]
    before = model.steered_tokens
    together = model.generate_until(mixed, disable_tqdm=True)
    counted = model.steered_tokens - before
    assert together == [model.generate_until([one], disable_tqdm=True)[0] for one in mixed]
    assert len(set(together[:4])) == 4, "the draw, its seed and where steering begins change the answer"
    assert together[6] == together[7], "a seed of nothing that is drawn changes nothing"
    encoded = [model.tok_encode(answer) for answer in together]
    assert encoded[0][0] == encoded[1][0] == encoded[2][0], "the first token is unsteered"
    assert counted > 0
    with pytest.raises(ConfigurationError, match="keep"):
        model.generate_until([request(PROMPTS[0], first, keep=0)], disable_tqdm=True)
    with pytest.raises(ConfigurationError, match="strength"):
        model.generate_until([request(PROMPTS[0], first, None)], disable_tqdm=True)


def test_an_intervention_that_moves_nothing_fails_the_canary(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="steering changed nothing"):
        model.generate_until([request(PROMPTS[0], save(tmp_path / "nothing", 0.0))], disable_tqdm=True)


def test_what_cannot_be_served_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot hold lora"):
        model.generate_until([request(PROMPTS[0], lora="folder")], disable_tqdm=True)
    with pytest.raises(StorageError):
        model.generate_until([request(PROMPTS[0], tmp_path / "missing")], disable_tqdm=True)
    one = Intervention((3, 64), *(np.zeros(1, kind) for kind in (np.int32, np.int32, np.uint8, np.float32)))
    one.save(tmp_path / "other")
    with pytest.raises((ConfigurationError, ModelError), match=r"3.*2|2.*3"):
        model.generate_until([request(PROMPTS[0], tmp_path / "other")], disable_tqdm=True)
    answer = model.generate_until([request(PROMPTS[0])], disable_tqdm=True)
    assert isinstance(answer[0], str), "the model is as before after a refusal"
