"""Where the gate activations lie: tiny models of the real classes, what is captured against the same by hand."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from personalitybench.activations.layouts import LAYOUTS, Gates, captured, check_shape, find_gates  # noqa: E402
from personalitybench.errors import DependencyDriftError, ModelError, NeedsNotMetError  # noqa: E402

LAYERS, NEURONS = 3, 24
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TANH = {"hidden_activation": "gelu_pytorch_tanh"}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {}),
    "gemma2": ("Gemma2", TANH),
    "gemma3_text": ("Gemma3", TANH),
    "phi3": ("Phi3", {}),
}
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def build(family: str, **changes: Any) -> Any:
    name, extra = FAMILIES[family]
    config_name = "Gemma3TextConfig" if family == "gemma3_text" else f"{name}Config"
    config = getattr(transformers, config_name)(**{**SIZES, **extra, **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def build_other(name: str, **changes: Any) -> Any:
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}  # what some derive, and refuse to be told
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    return transformers.AutoModelForCausalLM.from_config(config)


def decoder_layers(model: Any) -> Any:
    return model.get_decoder().layers


def by_hand(family: str, layer: Any, x: Any) -> Any:
    """σ(ĥW₁) from the weights alone: neither the model's activation module nor its MLP is called."""
    functional = torch.nn.functional
    if family == "phi3":
        return functional.silu(x @ layer.mlp.gate_up_proj.weight[:NEURONS].T)
    gate = x @ layer.mlp.gate_proj.weight.T
    return functional.gelu(gate, approximate="tanh") if family.startswith("gemma") else functional.silu(gate)


def run_captured(model: Any, gates: Gates, tokens: Any = TOKENS) -> tuple[dict[int, Any], dict[int, Any], Any]:
    """One forward pass: the captured activations, the inputs of the MLPs, the logits."""
    seen: dict[int, Any] = {}
    inputs: dict[int, Any] = {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _, args, number=number: inputs.__setitem__(number, args[0].clone()))
        for number, layer in enumerate(decoder_layers(model))
    ]
    with torch.no_grad(), captured(gates, lambda layer, found: seen.__setitem__(layer, found.clone())):
        logits = model(input_ids=tokens).logits
    for handle in handles:
        handle.remove()
    return seen, inputs, logits


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_every_family_of_the_table_is_tested() -> None:
    assert set(FAMILIES) == set(LAYOUTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_captured_is_the_gated_activation_before_the_product(family: str) -> None:
    model = build(family)
    gates = find_gates(model)
    assert (gates.family, gates.layers, gates.neurons) == (family, LAYERS, NEURONS)
    assert [site.layer for site in gates.sites] == list(range(LAYERS))
    assert len({id(site.module) for site in gates.sites}) == LAYERS
    for site in gates.sites:
        assert model.get_submodule(site.name) is site.module
    with torch.no_grad():
        untouched = model(input_ids=TOKENS).logits
    seen, inputs, logits = run_captured(model, gates)
    assert sorted(seen) == list(range(LAYERS))
    for number, layer in enumerate(decoder_layers(model)):
        assert seen[number].shape == (*TOKENS.shape, NEURONS)
        torch.testing.assert_close(seen[number], by_hand(family, layer, inputs[number]), atol=1e-6, rtol=1e-5)
        assert seen[number].abs().max() > 1e-3
    assert torch.equal(logits, untouched)
    assert hooks_of(model) == 0


def test_what_is_captured_is_the_half_that_the_mlp_gates_with() -> None:
    """Times the fused projection's second half, through the down projection, they are what the MLP gives."""
    model = build("phi3")
    seen, inputs, _ = run_captured(model, find_gates(model))
    mlp = decoder_layers(model)[1].mlp
    with torch.no_grad():
        up = inputs[1] @ mlp.gate_up_proj.weight[NEURONS:].T
        torch.testing.assert_close(mlp(inputs[1]), (seen[1] * up) @ mlp.down_proj.weight.T, atol=1e-7, rtol=1e-4)


def test_generation_visits_the_prompt_and_then_one_token_at_a_time() -> None:
    model = build("llama", eos_token_id=None)
    lengths: dict[int, list[int]] = {}
    with captured(find_gates(model), lambda layer, found: lengths.setdefault(layer, []).append(found.shape[1])):
        model.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert lengths == {layer: [5, 1, 1, 1] for layer in range(LAYERS)}


def test_the_decoder_alone_is_searched_as_well() -> None:
    model = build("qwen2")
    gates = find_gates(model.model)
    assert gates.sites[0].name == "layers.0.mlp.act_fn"
    assert gates.sites[2].module is model.model.layers[2].mlp.act_fn


def test_an_adapter_around_the_model_is_seen_through() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["gate_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build("llama"), settings).eval()
    gates = find_gates(model)
    assert model.get_submodule(gates.sites[1].name) is gates.sites[1].module
    seen, inputs, _ = run_captured(model, gates)
    mlp = decoder_layers(model)[0].mlp
    with torch.no_grad():
        torch.testing.assert_close(seen[0], torch.nn.functional.silu(mlp.gate_proj(inputs[0])))
    assert not torch.allclose(seen[0], torch.nn.functional.silu(inputs[0] @ mlp.gate_proj.base_layer.weight.T))


def test_the_text_part_of_a_model_that_also_sees_images() -> None:
    vision = {
        "hidden_size": 8,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config={**SIZES, **TANH}, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    gates = find_gates(model)
    assert (gates.family, gates.layers, gates.neurons) == ("gemma3_text", LAYERS, NEURONS)
    assert all("language_model" in site.name for site in gates.sites)
    seen, inputs, _ = run_captured(model, gates)
    expected = by_hand("gemma3_text", decoder_layers(model)[2], inputs[2])
    torch.testing.assert_close(seen[2], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("fails_at", [0, LAYERS - 1])
def test_the_model_is_restored_when_the_visitor_fails(fails_at: int) -> None:
    model = build("mistral")
    gates = find_gates(model)
    with torch.no_grad():
        before = model(input_ids=TOKENS).logits

    def fail(layer: int, _found: Any) -> None:
        if layer == fails_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), captured(gates, fail):
        model(input_ids=TOKENS)
    assert hooks_of(model) == 0
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, before)


def test_hooks_are_removed_when_one_cannot_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    gates = find_gates(model)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(gates.sites[-1].module, "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="no room"), captured(gates, lambda *_: None):
        pass
    assert hooks_of(model) == 0


def test_hooks_of_others_stay_and_are_seen() -> None:
    model = build("llama")
    gates = find_gates(model)
    handle = gates.sites[1].module.register_forward_hook(lambda _module, _args, output: output * 0 + 7)
    seen, _, _ = run_captured(model, gates)
    assert (seen[1] == 7).all()
    assert not (seen[0] == 7).any()
    assert hooks_of(model) == 1
    handle.remove()


def test_what_is_captured_holds_no_graph() -> None:
    model = build("llama")
    found: list[Any] = []
    with captured(find_gates(model), lambda _layer, activation: found.append(activation)):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
    assert not any(activation.requires_grad for activation in found)
    loss.backward()
    assert decoder_layers(model)[0].mlp.gate_proj.weight.grad is not None


def test_a_pass_that_was_cut_short_is_not_taken_for_whole() -> None:
    model = build("llama")
    gates = find_gates(model)
    with (
        pytest.raises(ModelError, match=r"layer 1 of the llama model ran 1 times, that of layer 0 2 times"),
        captured(gates, lambda *_: None),
    ):
        model(input_ids=TOKENS)
        handle = decoder_layers(model)[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=TOKENS)
        handle.remove()
    assert hooks_of(model) == 0


def test_a_block_without_a_forward_pass_is_no_error() -> None:
    with captured(find_gates(build("llama")), lambda *_: None):
        pass


def test_an_activation_of_another_width_is_named() -> None:
    model = build("llama")
    gates = find_gates(model)
    gates.sites[2].module.register_forward_hook(lambda _module, _args, output: output[..., :12])
    with (
        pytest.raises(ModelError, match=r"layers\.2\.mlp\.act_fn gave 12 neurons .* have 24"),
        captured(gates, lambda *_: None),
    ):
        model(input_ids=TOKENS)


@pytest.mark.parametrize(
    ("name", "changes", "family"),
    [
        ("Mixtral", {"num_local_experts": 4}, "mixtral"),
        ("Qwen2Moe", {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}, "qwen2_moe"),
        ("DeepseekV3", {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}, "deepseek_v3"),
    ],
)
def test_a_mixture_of_experts_is_refused_by_name(name: str, changes: dict[str, Any], family: str) -> None:
    with torch.device("meta"):
        model = build_other(name, **changes)
    with pytest.raises(NeedsNotMetError, match=rf"'{family}' is a mixture of 4 experts.*use a dense model"):
        find_gates(model)


@pytest.mark.parametrize(
    ("name", "changes", "family"),
    [
        ("GPT2", {"n_layer": 2, "n_embd": 16, "n_head": 2}, "gpt2"),
        ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16}, "opt"),
        ("Falcon", {}, "falcon"),
        ("Phi", {"num_key_value_heads": 2}, "phi"),
    ],
)
def test_an_mlp_without_a_gate_is_refused_by_name(name: str, changes: dict[str, Any], family: str) -> None:
    with torch.device("meta"):
        model = build_other(name, **changes)
    with pytest.raises(NeedsNotMetError, match=rf"'{family}' has an MLP without a gate.*a method that only prompts"):
        find_gates(model)


def test_an_unknown_family_is_refused_by_name_and_told_where_to_add_it() -> None:
    model = build("llama")
    model.config.model_type = "lama"
    with pytest.raises(NeedsNotMetError, match=r"'lama' is not known here: use one of gemma2,.*LAYOUTS") as error:
        find_gates(model)
    assert "\n" not in str(error.value)
    assert "gemma3," in str(error.value)  # the name that a model which sees images goes by


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"a Linear has no configuration"):
        find_gates(torch.nn.Linear(2, 2))


def test_one_activation_shared_by_all_layers_is_refused() -> None:
    model = build("gemma2")
    layers = decoder_layers(model)
    for layer in layers:
        layer.mlp.act_fn = layers[0].mlp.act_fn
    with pytest.raises(NeedsNotMetError, match=r"gemma2 model shares one activation module"):
        find_gates(model)
    for layer in layers:
        layer.mlp.act_fn = copy.deepcopy(layer.mlp.act_fn)
    assert find_gates(model).layers == LAYERS


def test_a_model_that_is_not_what_its_configuration_says_is_refused() -> None:
    short = build("llama")
    del short.model.layers[1]
    with pytest.raises(ModelError, match=r"llama model has 2 layers where its configuration says 3"):
        find_gates(short)
    narrow = build("phi3")
    narrow.config.intermediate_size = 2 * NEURONS
    with pytest.raises(ModelError, match=r"layer 0 of this phi3 model has mlp\.gate_up_proj of width 48 .* 96"):
        find_gates(narrow)
    bare = build("qwen3")
    del bare.model.layers[2].mlp.act_fn
    with pytest.raises(DependencyDriftError, match=r"gives layer 2 of this qwen3 model no modules mlp\.act_fn"):
        find_gates(bare)


def test_a_model_whose_mlp_may_pass_by_the_activation_is_refused() -> None:
    fused = build("llama")
    mlp = fused.model.layers[1].mlp

    def forward(self: Any, x: Any) -> Any:
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

    mlp.forward = MethodType(forward, mlp)
    with pytest.raises(ModelError, match=r"MLP of layer 1 of this llama model was given another forward"):
        find_gates(fused)
    with pytest.raises(ModelError, match=r"llama model is compiled"):
        find_gates(torch.compile(build("llama"), backend="eager"))
    compiled = build("llama")
    compiled.model.layers[0].compile(backend="eager")
    with pytest.raises(ModelError, match=r"llama model is compiled"):
        find_gates(compiled)


def test_a_model_whose_weights_accelerate_moves_is_not_refused() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("llama")
    for layer in decoder_layers(model):
        hooks.add_hook_to_module(layer.mlp, hooks.AlignDevicesHook("cpu", io_same_device=True))
        hooks.add_hook_to_module(layer.mlp.act_fn, hooks.AlignDevicesHook("cpu"))
    assert "forward" in vars(decoder_layers(model)[1].mlp)
    seen, inputs, _ = run_captured(model, find_gates(model))
    torch.testing.assert_close(seen[1], by_hand("llama", decoder_layers(model)[1], inputs[1]), atol=1e-6, rtol=1e-5)


def test_a_shape_of_another_model_is_refused_with_both_shapes() -> None:
    gates = find_gates(build("llama"))
    check_shape(gates, LAYERS, NEURONS, "the artifact")
    with pytest.raises(ModelError, match=r"/some/artifact is for 32 layers of 14336 neurons.* 3 layers of 24"):
        check_shape(gates, 32, 14336, "/some/artifact")
    with pytest.raises(ModelError, match=r"3 layers of 25 neurons"):
        check_shape(gates, LAYERS, NEURONS + 1, "/some/artifact")
    with pytest.raises(ModelError, match=r"4 layers of 24 neurons"):
        check_shape(gates, LAYERS + 1, NEURONS, "/some/artifact")
