"""The canary on transformers: edits that do nothing, edits that do too much, rows under the edits of others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from personalitybench.activations.interventions import Intervention, Operation  # noqa: E402
from personalitybench.backends.canary import distance, tolerance  # noqa: E402
from personalitybench.backends.loading import load_model  # noqa: E402
from personalitybench.backends.steerable import SteerableModel  # noqa: E402
from personalitybench.errors import ModelError  # noqa: E402
from tests.test_adapters import edit_config, write_adapter  # noqa: E402
from tests.test_adapters import request as with_adapter  # noqa: E402
from tests.test_steerable import PROMPTS, request, save  # noqa: E402

pytestmark = pytest.mark.model

Command = Callable[..., Any]


def load(folder: Path, backend: str = "personalitybench-hf", **args: Any) -> Any:
    return load_model(backend, {"pretrained": str(folder), "dtype": "float32", **args}, 8, "cpu")


def ask(model: Any, *requests: Any) -> list[str]:
    found: list[str] = model.generate_until(list(requests), disable_tqdm=True)
    return found


def altered(base: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a model with other weights."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def npti_like(folder: Path) -> Path:
    """Clamps that move the logits by themselves, and additions elsewhere."""
    clamped, raised = (np.array(range(start, 128, 2)) for start in (0, 1))
    places = np.concatenate([clamped, raised])
    operation = np.repeat([Operation.CLAMP_MAX, Operation.ADD], 64).astype(np.uint8)
    value = np.repeat([-9.0, 3.0], 64).astype(np.float32)
    layer, index = (places // 64).astype(np.int32), (places % 64).astype(np.int32)
    Intervention((2, 64), layer, index, operation, value).save(folder)
    return folder


def spoil(weights: dict[str, Any]) -> None:
    weights["model.norm.weight"][:] = torch.nan


def spoil_one(weights: dict[str, Any]) -> None:
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.inf


def silence(weights: dict[str, Any]) -> None:
    weights["model.norm.weight"][:] = 0.0


@pytest.mark.parametrize("change", [spoil, spoil_one, silence])
@pytest.mark.parametrize("backend", ["hf", "personalitybench-hf"])
def test_a_model_whose_logits_choose_no_token_writes_no_answer(
    tiny_model: Path, tmp_path: Path, backend: str, change: Callable[[dict[str, Any]], None]
) -> None:
    broken = load(altered(tiny_model, tmp_path / "broken", change), backend)
    with pytest.raises(ModelError, match=r"broken gives logits that are not finite, or all the same"):
        ask(broken, request(PROMPTS[0]), request(PROMPTS[1]))


def test_a_run_of_a_model_of_nan_ends_with_one_line(
    tiny_model: Path, tmp_path: Path, suite_file: Callable[[str], Path], command: Command
) -> None:
    broken = altered(tiny_model, tmp_path / "broken", spoil)
    suite = suite_file(
        f"name: nan\nmodels: [{{name: {broken}, args: {{dtype: float32}}}}]\nmethods: [none]\njudges: [offline]\n"
        "targets: [extraversion:high]\nquestions: {limit: 1}\nprotocol: {max_tokens: 2}\nfloors: false\n"
    )
    done = command("run", str(suite), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "not finite" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "leaderboard.json").exists()


def test_edits_that_are_too_strong_are_named(tiny_model: Path, tmp_path: Path) -> None:
    model = load(tiny_model)
    adapter = write_adapter(tiny_model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"intervention .*added at strength 1e\+38: the logits are not finite"):
        ask(model, request(PROMPTS[0]), request(PROMPTS[1], save(tmp_path / "added", 4.0), 1e38))
    with pytest.raises(ModelError, match=r"loud at strength 1 adds numbers that are not finite \(lora_alpha 1e\+308\)"):
        ask(model, with_adapter(PROMPTS[0], edit_config(adapter, tmp_path / "loud", lora_alpha=1e308)))
    with pytest.raises(ModelError, match=r"adapter .*adapter at strength 1e\+38"):
        ask(model, with_adapter(PROMPTS[0], adapter, 1e38))
    with pytest.raises(ModelError, match=r"adapter .*adapter at strength 1e\+20: the logits are not finite"):
        ask(model, with_adapter(PROMPTS[0], adapter, 1e20))
    assert ask(model, request(PROMPTS[0])), "the model is as before"


@pytest.mark.parametrize(("spread", "dtype"), [(1e-6, "float32"), (1e-7, "float32"), (1e-5, "bfloat16")])
def test_an_adapter_that_moves_no_more_than_rounding_is_refused(
    tiny_model: Path, tmp_path: Path, spread: float, dtype: str
) -> None:
    adapter = write_adapter(tiny_model, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, matrix in weights.items():
        matrix.mul_(spread / 0.5 if "lora_B" in name else 0.2)  # A as peft draws it
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"adapter changed nothing.*no more than rounding"):
        ask(load(tiny_model, dtype=dtype), with_adapter(PROMPTS[0], adapter))


@pytest.mark.parametrize("strength", [1e-46, 1e-30, 1e-6, -1e-6])
def test_additions_are_proven_apart_from_clamps(tiny_model: Path, tmp_path: Path, strength: float) -> None:
    with pytest.raises(ModelError, match=r"steering changed nothing: the additions of .* at strength"):
        ask(load(tiny_model), request(PROMPTS[0], npti_like(tmp_path / "npti"), strength))


def test_clamps_without_additions_are_proven_at_any_strength(tiny_model: Path, tmp_path: Path) -> None:
    model = load(tiny_model)
    ask(model, request(PROMPTS[0], save(tmp_path / "clamps", -1.0, Operation.CLAMP_MAX), 1.0))
    with pytest.raises(ModelError, match="the clamps of"):
        ask(model, request(PROMPTS[0], save(tmp_path / "idle", 100.0, Operation.CLAMP_MAX, seed=3), 1.0))


def test_strength_zero_leaves_the_clamps_and_says_so(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = load(tiny_model), npti_like(tmp_path / "npti")
    added = save(tmp_path / "added", 3.0)
    with caplog.at_level(logging.WARNING, "personalitybench"):
        zero, plain, none = ask(
            model, request(PROMPTS[0], folder, 0.0), request(PROMPTS[0]), request(PROMPTS[0], added, 0)
        )
    assert zero != plain, "its clamps hold"
    assert none == plain
    assert sorted(record.message for record in caplog.records if "strength 0" in record.message) == [
        f"{each} at strength 0 adds nothing: only its clamps, if it has any, change answers" for each in (added, folder)
    ]


def reverse_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    take = SteerableModel._take_wishes
    monkeypatch.setattr(SteerableModel, "_take_wishes", lambda self, rows: take(self, rows)[::-1])


def rotate_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = SteerableModel._altered

    def rotated(self: Any, orders: Any, prompt_columns: int | None = None) -> Any:
        return apply(self, [*orders[1:], orders[0]], prompt_columns)

    monkeypatch.setattr(SteerableModel, "_altered", rotated)


def drop_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer all rows but the first without edits."""
    apply = SteerableModel._altered

    def dropped(self: Any, orders: Any, prompt_columns: int | None = None) -> Any:
        none = type(orders[0])()
        return apply(self, [orders[0], *[none for _ in orders[1:]]], prompt_columns)

    monkeypatch.setattr(SteerableModel, "_altered", dropped)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("patch", [reverse_wishes, rotate_edits, drop_edits])
@pytest.mark.parametrize("kind", ["intervention", "adapter"])
def test_rows_under_the_edits_of_others_are_found(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patch: Callable[[pytest.MonkeyPatch], None],
    kind: str,
    dtype: str,
) -> None:
    model = load(tiny_model, dtype=dtype)
    if kind == "intervention":
        folders = [save(tmp_path / str(seed), 4.0, seed=seed) for seed in range(3)]
        asked = [request(PROMPTS[0], folder) for folder in folders]
    else:
        folders = [write_adapter(tiny_model, tmp_path / str(seed), seed) for seed in range(3)]
        asked = [with_adapter(PROMPTS[0], folder) for folder in folders]
    asked.append(request(PROMPTS[0]))
    assert len(ask(model, *asked)) == 4, "as it is, the batch passes"
    patch(monkeypatch)
    with pytest.raises(ModelError, match=r"steering failed: a row of a batch of 4 was answered with"):
        ask(load(tiny_model, dtype=dtype), *asked)
    with pytest.raises(ModelError, match="steering failed"):  # also where all edits were proven before
        for _ in range(4):
            ask(model, *asked)


def test_masked_tokens_of_a_vocabulary_are_no_fault() -> None:
    one = torch.tensor([[1.0, -torch.inf, 3.0]])
    assert distance(one, one) == 0.0
    assert 0 < tolerance(one) < 0.01
