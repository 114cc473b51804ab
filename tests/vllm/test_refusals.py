"""What cannot be served is refused with a text that helps, and the engine goes on."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from personalitybench.backends.vllm.loader import _refuse_features, plugin_options
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError, StorageError
from tests.test_activations_interventions import forge
from tests.vllm.engines import Request, params_of, prompt_of, run_elsewhere, tokens_of
from tests.vllm.models import LAYERS, NEURONS, save_intervention, save_unsupported

Engine = Callable[..., Any]
PROMPT = [0, 17, 33, 250, 401]
FEW = {"personalitybench": {"slots": 2}}


def bad_request(what: str, folder: Path) -> dict[str, Any]:
    """Make a request that cannot be served."""
    steered: dict[str, Any] = {"intervention": str(folder), "strength": 1.0}
    if what == "missing":
        return steered
    shape = (LAYERS, 2 * NEURONS) if what == "shape" else (LAYERS, NEURONS)
    save_intervention(folder, 0, shape)
    if what == "nan":
        forge(folder, value=np.full(2 * (LAYERS * NEURONS // 3), np.nan, np.float32))
    if what == "truncated":
        tensors = folder / "intervention.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-40])
    more: dict[str, dict[str, Any]] = {"key": {"strenght": 2.0}, "keep": {"keep": 1.5}, "counting": {"shard": 0}}
    return steered | more.get(what, {})


REFUSALS: list[tuple[str, type[Exception], str]] = [
    ("missing", StorageError, r"intervention artifact .* is missing"),
    ("truncated", StorageError, r"intervention\.safetensors is truncated or was altered"),
    ("nan", StorageError, r"value nan at neuron \d+ of layer 0"),
    ("shape", ModelError, "3 layers x 256 neurons, but this model has 3 layers x 128 neurons"),
    ("key", ConfigurationError, "cannot hold strenght; it may hold adapter, adapter_strength, intervention"),
    ("keep", ConfigurationError, r"keep is 1\.5"),
    ("counting", NeedsNotMetError, r'no room for counts: load it with additional_config=\{"personalitybench"'),
]


@pytest.mark.parametrize(("what", "kind", "text"), REFUSALS)
def test_a_refused_request_leaves_the_engine_as_it_was(
    engine: Engine, tmp_path: Path, what: str, kind: type[Exception], text: str
) -> None:
    llm = engine()
    good = Request(PROMPT, new_tokens=6)
    expected = tokens_of(llm, [good])
    bad = Request(PROMPT, bad_request(what, tmp_path / "artifact"))
    with pytest.raises(kind, match=text):
        tokens_of(llm, [good, bad, good])
    assert not llm.llm_engine.has_unfinished_requests()
    assert tokens_of(llm, [good]) == expected


def test_an_engine_without_the_plugin_says_how_to_load_it(engine: Engine, interventions: list[str]) -> None:
    llm = engine(steerable=False)
    with pytest.raises(NeedsNotMetError, match="loaded without load_format=personalitybench"):
        tokens_of(llm, [Request(PROMPT, {"intervention": interventions[0], "strength": 1.0})])
    assert len(tokens_of(llm, [Request(PROMPT, new_tokens=6)])[0]) == 6


def test_shards_beyond_those_of_the_engine_are_refused(engine: Engine) -> None:
    llm = engine(additional_config={"personalitybench": {"statistics": {"shards": 2}}})
    with pytest.raises(ConfigurationError, match="shard 2: the engine counts shards 0 to 1"):
        tokens_of(llm, [Request(PROMPT, {"shard": 2})])
    assert tokens_of(llm, [Request(PROMPT, {"shard": 1}, new_tokens=6)]) == tokens_of(
        engine(), [Request(PROMPT, new_tokens=6)]
    )


def test_more_interventions_at_once_than_slots_are_refused_and_over_time_they_take_turns(
    engine: Engine, tmp_path: Path
) -> None:
    llm, roomy = engine(additional_config=FEW), engine()
    folders = [save_intervention(tmp_path / str(seed), seed) for seed in range(5)]
    requests = [Request(PROMPT, {"intervention": folder, "strength": 1.0}) for folder in folders]
    with pytest.raises(NeedsNotMetError, match=r'more than 2 interventions at once.*"slots": N'):
        tokens_of(llm, requests[:3])
    assert not llm.llm_engine.has_unfinished_requests()

    expected = [tokens_of(roomy, [one])[0] for one in requests]
    assert len({tuple(answer) for answer in expected}) == len(requests)
    # Each pair needs a slot that another intervention had, and the first come back after the last.
    for pair in ((0, 1), (2, 3), (4, 0), (1, 2), (3, 4)):
        assert tokens_of(llm, [requests[index] for index in pair]) == [expected[index] for index in pair]
    # Any number of requests and strengths share a slot.
    same = [Request(PROMPT, {"intervention": folders[0], "strength": 0.1 * number}) for number in range(1, 6)]
    assert tokens_of(llm, same) == tokens_of(roomy, same)


def test_an_intervention_that_is_being_used_keeps_its_slot(engine: Engine, tmp_path: Path) -> None:
    """Requests come while a long one is under way: they take the slots of those that have ended."""
    llm, roomy = engine(additional_config=FEW), engine()
    folders = [save_intervention(tmp_path / str(seed), 20 + seed) for seed in range(4)]
    long, *short = (
        Request(PROMPT, {"intervention": folder, "strength": 1.0}, new_tokens=count, more={"ignore_eos": True})
        for folder, count in zip(folders, (40, 6, 6, 6), strict=True)
    )
    served = llm.llm_engine
    served.add_request("long", prompt_of(long), params_of(long))
    found: dict[str, list[int]] = {}
    for number, one in enumerate(short):
        served.add_request(str(number), prompt_of(one), params_of(one))
        if number == 0:
            with pytest.raises(NeedsNotMetError, match="more than 2 interventions at once"):
                served.add_request("one too many", prompt_of(short[1]), params_of(short[1]))
        while str(number) not in found:
            found |= {out.request_id: list(out.outputs[0].token_ids) for out in served.step() if out.finished}
        assert "long" not in found
    while served.has_unfinished_requests():
        found |= {out.request_id: list(out.outputs[0].token_ids) for out in served.step() if out.finished}
    expected = [tokens_of(roomy, [one])[0] for one in (long, *short)]
    assert [found[name] for name in ("long", "0", "1", "2")] == expected


@pytest.mark.parametrize(
    ("section", "setting", "value", "said"),
    [
        ("parallel_config", "pipeline_parallel_size", 2, "pipeline parallelism"),
        ("parallel_config", "decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config", "enable_dbo", True, "micro-batches"),
    ],
)
def test_features_that_move_tokens_are_refused(
    engine: Engine, section: str, setting: str, value: Any, said: str
) -> None:
    config = copy.copy(engine().llm_engine.vllm_config)
    _refuse_features(config)
    part = copy.copy(getattr(config, section))
    object.__setattr__(part, setting, value)
    object.__setattr__(config, section, part)
    with pytest.raises(NeedsNotMetError, match=f"does not work with {said}.*switch it off"):
        _refuse_features(config)


def test_unknown_options_are_refused(engine: Engine) -> None:
    config = copy.copy(engine().llm_engine.vllm_config)
    object.__setattr__(config, "additional_config", {"personalitybench": {"slot": 3}})
    with pytest.raises(ConfigurationError, match=r"additional_config\['personalitybench'\].*slot"):
        plugin_options(config)


@pytest.fixture(scope="module")
def refused_models(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How engines end that cannot be: in a process of their own, which a failed start may leave in any state."""
    root = tmp_path_factory.mktemp("refused")
    for kind in ("mixtral", "opt"):
        save_unsupported(root / kind, kind)
    draft = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    llama = str(models("llama"))
    stock = {"name": "stock", "model": llama, "steerable": False}
    calls: dict[str, dict[str, Any]] = {
        "modules": {"call": "modules_of", **stock},
        "mixtral": {"call": "open_refused", "name": "mixtral", "model": str(root / "mixtral"), "max_model_len": 128},
        "opt": {"call": "open_refused", "name": "opt", "model": str(root / "opt"), "max_model_len": 128},
        "version": {"call": "open_refused", "name": "version", "model": llama, "tested": "<0.30"},
        "": {"call": "open", **stock, "name": "after"},
        "stock": {"call": "answer", "name": "after", "requests": [Request(PROMPT, new_tokens=6)]},
        # The last: after it vLLM 0.32 cannot start another engine on a CPU, refused or not.
        "speculative": {"call": "open_refused", "name": "draft", "model": llama, "speculative_config": draft},
    }
    return dict(zip(calls, run_elsewhere(root, list(calls.values())), strict=True))


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("mixtral", "NeedsNotMetError: model family 'mixtral' is a mixture of 2 experts"),
        ("opt", "NeedsNotMetError: model family 'opt' has an MLP without a gate"),
        ("speculative", "NeedsNotMetError: load_format=personalitybench does not work with speculative decoding"),
        (
            "version",
            "is outside of the range <0.30 that steering supports (tried: 0.32.0, 0.33.0): install 'vllm<0.30'",
        ),
    ],
)
def test_engines_that_cannot_be_are_refused_by_name(refused_models: dict[str, str], which: str, said: str) -> None:
    assert said in refused_models[which]


def test_a_refused_engine_leaves_vllm_as_it_was(refused_models: dict[str, Any], engine: Engine) -> None:
    assert refused_models["stock"] == tokens_of(engine(), [Request(PROMPT, new_tokens=6)])


def test_a_stock_engine_loads_nothing_of_what_steers(refused_models: dict[str, Any]) -> None:
    """The entry point registers the load format and the check of requests; the rest comes with a model that asks."""
    plugin = "personalitybench.backends.vllm."
    assert plugin + "plugin" in refused_models["modules"]
    heavy = {plugin + name for name in ("gates", "kernel", "loader", "requests", "seams", "state")}
    assert not heavy & set(refused_models["modules"])
    assert plugin + "gates" in sys.modules
