"""LoRA adapters on disk: what is read, what is refused, and the copies that backends are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import save_file

from personalitybench.backends.vllm.served_adapters import ServedAdapter
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError, StorageError

CONFIG = {
    "target_modules": "all-linear",
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "bias": "none",
    "init_lora_weights": True,
    "use_dora": False,
}
WIDTHS = {"q_proj": (8, 8), "v_proj": (8, 4), "down_proj": (12, 8)}


class Shape:
    """The fields of a model's configuration that decide its projections."""

    hidden_size = 8
    intermediate_size = 12
    num_hidden_layers = 2
    num_attention_heads = 2
    num_key_value_heads = 1


def save(folder: Path, *, names: dict[str, tuple[int, int]] = WIDTHS, layers: int = 2, **config: Any) -> Path:
    """Save an adapter as peft does."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for layer in range(layers):
        for name, (read, written) in names.items():
            block = "mlp" if name == "down_proj" else "self_attn"
            place = f"base_model.model.model.layers.{layer}.{block}.{name}"
            tensors[f"{place}.lora_A.weight"] = np.full((2, read), layer, np.float32)
            tensors[f"{place}.lora_B.weight"] = np.ones((written, 2), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    files = ServedAdapter.open(save(tmp_path / "own"))
    assert (files.rank, files.alpha, files.modules) == (2, 4.0, set(WIDTHS))
    files.check_model(Shape)
    same = ServedAdapter.open(save(tmp_path / "same"))
    assert same.sha256 == files.sha256, "of the content, wherever it lies"
    assert ServedAdapter.open(save(tmp_path / "own", lora_alpha=8)).sha256 != files.sha256, "written anew"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "is of peft's type 'IA3'"),
        ({"use_dora": True}, r"more than plain LoRA: DoRA \(use_dora\)"),
        ({"rank_pattern": {"q_proj": 4}}, r"a rank or scale of their own \(rank_pattern\)"),
        ({"modules_to_save": ["lm_head"]}, r"whole modules saved beside it \(modules_to_save\)"),
        ({"bias": "all"}, r"trained biases \(bias='all'\)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(NeedsNotMetError, match=said):
        ServedAdapter.open(save(tmp_path / "own", **config))


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere is missing: give the folder that peft saved it in"):
        ServedAdapter.open(tmp_path / "nowhere")
    own = save(tmp_path / "own")
    weights = own / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(StorageError, match="is truncated or was altered"):
        ServedAdapter.open(own)
    weights.rename(own / "adapter_model.bin")
    with pytest.raises(StorageError, match=r"adapter_model\.bin, a pickle, which can run code"):
        ServedAdapter.open(own)
    (own / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": 0}))
    weights.write_bytes(whole)
    with pytest.raises(StorageError, match="r: Input should be greater than 0"):
        ServedAdapter.open(own)
    with pytest.raises(NeedsNotMetError, match=r"'lm_head\.lora_A\.weight', which is not served"):
        save_file({"lm_head.lora_A.weight": np.ones((2, 8), np.float32)}, weights)
        (own / "adapter_config.json").write_text(json.dumps(CONFIG))
        ServedAdapter.open(own)


def test_adapters_of_other_models_are_refused(tmp_path: Path) -> None:
    """A smaller one would be laid into the corner of a larger matrix, and a layer too many left out."""
    narrow = ServedAdapter.open(save(tmp_path / "narrow", names={"q_proj": (4, 8)}))
    with pytest.raises(ModelError, match=r"q_proj\.lora_A\.weight is \[2, 4\], this model .* needs \[2, 8\]"):
        narrow.check_model(Shape)
    with pytest.raises(ModelError, match=r"layers\.2\..*this model has 2 layers"):
        ServedAdapter.open(save(tmp_path / "deep", layers=3)).check_model(Shape)
    with pytest.raises(NeedsNotMetError, match="changes 'router', which is not served"):
        ServedAdapter.open(save(tmp_path / "other", names={"router": (8, 8)})).check_model(Shape)


def test_copies_are_shared_and_apart_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONALITYBENCH_CACHE", str(tmp_path / "cache"))
    own = save(tmp_path / "own")
    files = ServedAdapter.open(own)
    half, whole = files.scaled(0.5), files.scaled(1.0)
    assert json.loads((half / "adapter_config.json").read_text()) == CONFIG | {"lora_alpha": 2.0}
    assert files.scaled(-2).name.endswith("--2.0")
    weights = half / "adapter_model.safetensors"
    assert weights.samefile(whole / weights.name), "strengths share the bytes"
    assert not weights.samefile(own / weights.name), "which do not follow the folder"
    assert sorted(one.name for one in half.parent.iterdir()) == sorted(
        f"{files.sha256}-{strength}" for strength in (-2.0, 0.5, 1.0)
    )
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match=r"was altered: delete .*, it will be made again"):
        files.scaled(0.5)
    for strength in (0.0, float("nan")):
        with pytest.raises(ConfigurationError, match="finite and not 0"):
            files.scaled(strength)


def test_a_folder_that_changes_meanwhile_is_never_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONALITYBENCH_CACHE", str(tmp_path / "cache"))
    files = ServedAdapter.open(save(tmp_path / "own"))
    save(tmp_path / "own", layers=1)
    with pytest.raises(StorageError, match="changed while it was read"):
        files.scaled(0.5)
    assert list((tmp_path / "cache" / "adapters").iterdir()) == []
