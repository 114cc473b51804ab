"""Adapters of many targets in one batch, beside steered and plain requests: each gets what it gets alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from lm_eval.api.instance import Instance

from personalitybench.backends.loading import load_model
from personalitybench.backends.needs import STEERABLE_VLLM, capabilities_of, engine_with_plugin
from personalitybench.backends.vllm.adapters import _named
from personalitybench.backends.vllm.canary import prove_steering
from personalitybench.backends.vllm.engine import engine_arguments
from personalitybench.backends.vllm.served_adapters import ServedAdapter
from personalitybench.errors import ConfigurationError, ModelError, NeedsNotMetError, StorageError
from tests.vllm.engines import (
    PENALTY,
    PLUGIN,
    STOCK,
    Request,
    answer,
    edited_by,
    params_of,
    prompt_of,
    run_elsewhere,
    tokens_of,
    transformers_tokens,
)
from tests.vllm.models import LAYERS, config_of, save_adapter, save_model
from tests.vllm.test_prefix_cache import BLOCK, some_prompt

Engine = Callable[..., Any]
ROOM = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 8}
PROMPT = [0, 17, 33, 250, 401]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONALITYBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def adapters(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three adapters for the tiny Llama."""
    root = tmp_path_factory.mktemp("adapters")
    return [save_adapter(root / str(seed), models("llama"), seed) for seed in range(3)]


def mixed(adapters: list[str], interventions: list[str]) -> list[Request]:
    """Plain, adapters (one at two strengths and turned round), steered, and both at once."""
    first, second = {"adapter": adapters[0]}, {"adapter": adapters[1]}
    steered = {"intervention": interventions[0], "strength": 1.0}
    wanted: list[dict[str, Any] | None] = [
        first,
        None,
        first | {"adapter_strength": 0.5},
        second,
        steered,
        second | steered,
        first | {"intervention": interventions[1], "strength": 1.3, "first_token": True},
        second | {"adapter_strength": -0.5},
        None,
    ]
    prompts = [some_prompt(200 + number, 5 + 4 * number) for number in range(len(wanted))]
    return [Request(prompt, wish) for prompt, wish in zip(prompts, wanted, strict=True)]


def plain(requests: list[Request]) -> list[Request]:
    return [Request(one.prompt, new_tokens=one.new_tokens) for one in requests]


def test_a_mixed_batch_equals_each_alone_and_peft(
    engine: Engine, models: Callable[[str], Path], adapters: list[str], interventions: list[str]
) -> None:
    requests = mixed(adapters, interventions)
    llm = engine(**ROOM)
    together, edited, scheduled, applied = edited_by(llm, requests)
    assert together == [tokens_of(llm, [one])[0] for one in requests]
    assert together == transformers_tokens(models("llama"), requests)
    without = tokens_of(engine(), plain(requests))
    assert [one != other for one, other in zip(together, without, strict=True)] == [
        one.wanted is not None for one in requests
    ]
    steered = [one for one, request in zip(together, requests, strict=True) if "strength" in (request.wanted or {})]
    assert edited == scheduled == sum(len(one) - 1 for one in steered) + 1, "adapters edit nothing"
    assert applied == [edited] * LAYERS


@pytest.mark.parametrize("family", ["phi3", "gemma2"])
def test_other_families_are_served_too(
    engine: Engine, models: Callable[[str], Path], interventions: list[str], tmp_path: Path, family: str
) -> None:
    """Phi-3 has its projections joined; Gemma-2 scales and norms around them."""
    names = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"] if family == "phi3" else None
    settings = {"target_modules": names} if names else {}
    own = [save_adapter(tmp_path / str(seed), models(family), seed, **settings) for seed in range(2)]
    requests = mixed(own, interventions)
    together = tokens_of(engine(family, **ROOM), requests)
    assert together == transformers_tokens(models(family), requests)
    assert together[0] != tokens_of(engine(family), plain(requests[:1]))[0]


def test_a_stock_engine_serves_adapters_as_its_own(engine: Engine, adapters: list[str]) -> None:
    from vllm.lora.request import LoRARequest

    llm = engine(steerable=False, **ROOM)
    wished = [Request(some_prompt(210 + number), {"adapter": adapters[number]}) for number in range(2)]
    asked = [Request(one.prompt) for one in wished]
    params = [params_of(one) for one in asked]
    stock = llm.generate(
        [prompt_of(one) for one in asked],
        params,
        lora_request=[LoRARequest(str(number), number + 1, folder) for number, folder in enumerate(adapters[:2])],
        use_tqdm=False,
    )
    expected = [list(one.outputs[0].token_ids) for one in stock]
    # Beside plain requests, whom vLLM 0.32 gives the last adapter on CPUs.
    found = tokens_of(llm, [*asked, *wished])
    assert found[2:] == expected
    assert found[:2] == tokens_of(engine(steerable=False), asked)


def test_more_adapters_than_room_wait_for_each_other(
    engine: Engine, adapters: list[str], interventions: list[str]
) -> None:
    """One place for adapters; three of them, and one at another strength, come in one batch."""
    wanted: list[dict[str, Any] | None] = [{"adapter": folder} for folder in adapters]
    wanted += [{"adapter": adapters[0], "adapter_strength": 2.0}, None]
    requests = [Request(some_prompt(220 + number), wish) for number, wish in enumerate(wanted * 2)]
    narrow = engine(**{**ROOM, "max_loras": 1})
    expected = [tokens_of(engine(**ROOM), [one])[0] for one in requests]
    assert tokens_of(narrow, requests) == expected
    assert len({tuple(one) for one in expected}) == len(requests)


def test_strength_nothing_is_no_adapter(engine: Engine, adapters: list[str]) -> None:
    llm, prompt = engine(**ROOM), some_prompt(230)
    none, off = Request(prompt), Request(prompt, {"adapter": adapters[0], "adapter_strength": 0.0})
    assert tokens_of(llm, [none]) == tokens_of(llm, [off])


def test_an_adapter_that_was_written_anew_is_another_one(
    engine: Engine, models: Callable[[str], Path], tmp_path: Path
) -> None:
    """Neither weights nor keys and values of the first are served for the second, in the same folder."""
    caching = engine(enable_prefix_caching=True, block_size=BLOCK, num_gpu_blocks_override=256, **ROOM)
    fresh, own = engine(**ROOM), tmp_path / "own"
    request = Request(some_prompt(240, 90), {"adapter": str(own)}, new_tokens=8)
    answers = []
    for seed in (30, 31):
        save_adapter(own, models("llama"), seed)
        first, again = answer(caching, [request])[0], answer(caching, [request])[0]
        assert (first.cached_tokens, again.cached_tokens >= BLOCK) == (0, True)
        assert first.tokens == again.tokens == tokens_of(fresh, [request])[0]
        answers.append(first.tokens)
    assert answers[0] != answers[1]
    plain_one = answer(caching, [Request(request.prompt, new_tokens=8)])[0]
    assert plain_one.cached_tokens == 0


def test_requests_that_name_an_adapter_themselves_cannot_wish_another(engine: Engine, adapters: list[str]) -> None:
    from vllm.lora.request import LoRARequest

    llm = engine(**ROOM)
    one = Request(PROMPT, {"adapter": adapters[0]}, new_tokens=4)
    with pytest.raises(ConfigurationError, match="names the LoRA adapter 'own' itself and wishes"):
        llm.generate(
            [prompt_of(one)], [params_of(one)], lora_request=LoRARequest("own", 1, adapters[1]), use_tqdm=False
        )
    assert not llm.llm_engine.has_unfinished_requests()


def test_engines_without_room_for_adapters_say_how_to_get_it(engine: Engine, adapters: list[str]) -> None:
    for llm in (engine(), engine(steerable=False)):
        with pytest.raises(NeedsNotMetError, match=r"without room for adapters: load it with enable_lora=True"):
            tokens_of(llm, [Request(PROMPT, {"adapter": adapters[0]})])


REFUSALS: list[tuple[str, type[Exception], str]] = [
    ("nowhere", StorageError, r"nowhere is missing: give the folder that peft saved it in"),
    ("rank", NeedsNotMetError, "rank 16, the engine was loaded for adapters of rank 8.*raise max_lora_rank"),
    ("widths", ModelError, r"made for another model: .* this model has 3 layers and needs"),
]


def bad_adapter(what: str, folder: Path, models: Callable[[str], Path]) -> Request:
    """Make a request for an adapter that cannot be served."""
    model = models("llama")
    if what == "widths":
        model = folder / "wide"
        save_model(model, config_of("llama", intermediate_size=96))
    if what != "nowhere":
        save_adapter(folder / what, model, 0, rank=16 if what == "rank" else 4)
    return Request(PROMPT, {"adapter": str(folder / what)}, new_tokens=4)


@pytest.mark.parametrize(("what", "kind", "text"), REFUSALS)
def test_a_refused_adapter_leaves_the_engine_as_it_was(
    engine: Engine, models: Callable[[str], Path], tmp_path: Path, what: str, kind: type[Exception], text: str
) -> None:
    llm = engine(**ROOM)
    good = Request(PROMPT, new_tokens=4)
    with pytest.raises(kind, match=text):
        tokens_of(llm, [good, bad_adapter(what, tmp_path, models), good])
    assert not llm.llm_engine.has_unfinished_requests()
    assert tokens_of(llm, [good]) == tokens_of(engine(), [good])


def test_an_engine_in_another_process_and_many_clients(
    engine: Engine, models: Callable[[str], Path], adapters: list[str], interventions: list[str], tmp_path: Path
) -> None:
    """As vLLM's server runs it: the request's adapter is chosen here and loaded there."""
    requests = mixed(adapters, interventions)
    asked = [*requests, bad_adapter("nowhere", tmp_path, models)]
    call = {"call": "answer_async", "model": str(models("llama")), "requests": asked, **ROOM}
    (found,) = run_elsewhere(tmp_path, [call], VLLM_ENABLE_V1_MULTIPROCESSING="1")
    assert found[:-1] == tokens_of(engine(**ROOM), requests)
    assert found[-1].startswith("StorageError: adapter")


LM_EVAL = {"max_gen_toks": 10, "until": [], "do_sample": False, "temperature": 0.0, "repetition_penalty": PENALTY}


def lm_eval_request(text: str, wanted: dict[str, Any] | None) -> Instance:
    extra = {"extra_args": {PLUGIN: wanted}} if wanted else {}
    return Instance("generate_until", {"id": text}, (text, LM_EVAL | extra), idx=0, task_name="", doc_id=0)


@pytest.fixture(scope="session")
def lm_eval_models(models: Callable[[str], Path]) -> dict[str, Any]:
    """Ours and lm-eval's own; they stay, as all engines of this process do."""
    args = {**STOCK, **ROOM, "pretrained": str(models("llama"))}
    return {name: load_model(name, args, 16, None) for name in (STEERABLE_VLLM, "vllm")}


def test_lm_eval_models_serve_adapters_and_prove_it(
    lm_eval_models: dict[str, Any], adapters: list[str], interventions: list[str]
) -> None:
    ours, stock = lm_eval_models[STEERABLE_VLLM], lm_eval_models["vllm"]
    steered = {"intervention": interventions[0], "strength": 1.0}
    wanted: list[dict[str, Any] | None] = [
        None,
        {"adapter": adapters[0]},
        {"adapter": adapters[1], "adapter_strength": 0.5},
        {"adapter": adapters[0], "adapter_strength": 0.0},
        {"adapter": adapters[1]} | steered,
    ]
    requests = [lm_eval_request("What do you do when a plan falls apart?", wish) for wish in wanted]
    answers = ours.generate_until(requests, disable_tqdm=True)
    assert len(set(answers)) == 4
    assert answers[0] == answers[3]
    assert stock.generate_until(requests[:4], disable_tqdm=True) == answers[:4]

    proven = {(str(wish.adapter), wish.adapter_strength) for wish in ours.logit_changes}
    assert proven == {(adapters[0], 1.0), (adapters[1], 0.5), (adapters[1], 1.0)}
    assert min(ours.logit_changes.values()) > 0.01
    assert ours.steered_tokens == 9, "of one request"

    assert capabilities_of(ours) == {"adapter", "intervention"}
    assert capabilities_of(stock) == {"adapter"}
    requests[1].resps = [answers[1]]
    proof = prove_steering(engine_with_plugin(stock), stock, requests[1])
    assert proof["logit_change"] > 0.01
    assert "edited_tokens" not in proof
    assert prove_steering(engine_with_plugin(stock), stock, requests[3]) == {}
    with pytest.raises(NeedsNotMetError, match="load_format=personalitybench"):
        stock.generate_until(requests[4:], disable_tqdm=True)


def test_an_adapter_that_changes_nothing_fails_the_canary(
    lm_eval_models: dict[str, Any], models: Callable[[str], Path], tmp_path: Path
) -> None:
    idle = save_adapter(tmp_path / "idle", models("llama"), 0, scale=0.0)
    with pytest.raises(ModelError, match=r"adapter changed nothing: .*idle at strength 1 leaves the logits"):
        lm_eval_models[STEERABLE_VLLM].generate_until([lm_eval_request("Why?", {"adapter": idle})], disable_tqdm=True)


def test_an_engine_that_forgot_the_adapter_fails_the_canary(
    lm_eval_models: dict[str, Any], adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where ``VLLM_PLUGINS`` leaves the plug-in out: the wish travels, and nobody reads it."""
    monkeypatch.setattr("personalitybench.backends.vllm.plugin._wants_anything", lambda _: False)
    with pytest.raises(ModelError, match="was answered with none: see that VLLM_PLUGINS"):
        request = lm_eval_request("Why?", {"adapter": adapters[2]})
        lm_eval_models[STEERABLE_VLLM].generate_until([request], disable_tqdm=True)


def test_room_is_made_where_lora_is_enabled() -> None:
    assert "max_loras" not in engine_arguments({})
    made = engine_arguments({"enable_lora": True, "max_lora_rank": 64})
    assert (made["max_loras"], made["max_lora_rank"]) == (10, 64)


def test_numbers_of_adapters_differ_even_where_their_hashes_agree(
    adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personalitybench.backends.vllm.adapters._IDS", 2)
    monkeypatch.setattr("personalitybench.backends.vllm.adapters._names", {})
    files = [ServedAdapter.open(Path(folder)) for folder in adapters[:2]]
    asked = [_named(files[0], 1.0), _named(files[1], 1.0), _named(files[0], 1.0)]
    assert asked[0].lora_int_id == asked[2].lora_int_id != asked[1].lora_int_id
