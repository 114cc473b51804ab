"""Where a transformers model keeps its neurons: found here before anything counts or edits gate activations.

A neuron is one unit of the gated activation σ(ĥW₁) in an MLP, before the product with the up projection (paper
eq. 1): what the MLP's activation module returns. A table says where that module lies in each model family; a model
that has no such place, or where a hook would silently see nothing, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from personalitybench.activations.calls import describe
from personalitybench.errors import ModelError, NeedsNotMetError
from personalitybench.versions import drift_error


@dataclass(frozen=True)
class Layout:
    """Where the gate lies in a decoder layer's ``mlp``.

    Attributes:
        activation: Attribute that holds the activation module σ.
        projection: Attribute that holds the linear layer W₁ whose output σ is applied to.
        parts: How many projections of equal width that linear layer fuses; the gate is the first.
    """

    activation: str = "act_fn"
    projection: str = "gate_proj"
    parts: int = 1


@dataclass(frozen=True)
class GateSite:
    """The gate activation of one layer.

    Attributes:
        layer: Number of the decoder layer, from 0.
        name: Dotted name of the activation module in the model that was searched.
        module: The activation module; its output has the shape [batch, tokens, neurons].
    """

    layer: int
    name: str
    module: nn.Module


@dataclass(frozen=True)
class Gates:
    """All neurons of a model.

    Attributes:
        family: The ``model_type`` of the part of the model that writes text.
        layers: How many decoder layers there are.
        neurons: How many neurons each layer has (``intermediate_size``).
        sites: One site for each layer, in order; no two share a module.
    """

    family: str
    layers: int
    neurons: int
    sites: tuple[GateSite, ...]


Visit = Callable[[int, Tensor], None]

_SEPARATE = Layout()

# By `config.model_type`. SmolLM and SmolLM2 are "llama", Qwen2.5 is "qwen2". The activation is SiLU, in Gemma GELU
# with the tanh approximation: either is above zero exactly where its input is.
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "gemma2": _SEPARATE,
        "gemma3_text": _SEPARATE,
        "llama": _SEPARATE,
        "mistral": _SEPARATE,
        "phi3": Layout(activation="activation_fn", projection="gate_up_proj", parts=2),
        "qwen2": _SEPARATE,
        "qwen3": _SEPARATE,
    }
)

# Models that also see images, with the family of the part that writes text.
_TEXT_FAMILIES: Mapping[str, str] = MappingProxyType({"gemma3": "gemma3_text"})

# Decoders whose MLP is σ(ĥW₁)·W₂, without an up projection.
_UNGATED = frozenset(
    {
        *("biogpt", "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj"),
        *("mpt", "nemotron", "opt", "persimmon", "phi", "starcoder2", "xglm"),
    }
)

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def find_gates(model: nn.Module) -> Gates:
    """Find the gate activation of each layer of a transformers model.

    Adapters (peft) around the model and a vision tower beside it are seen through.

    Args:
        model: A loaded model of a family in :data:`LAYOUTS`, with or without its language-model head.

    Returns:
        As many sites as the configuration has layers, each a module of its own.

    Raises:
        NeedsNotMetError: The family has no such place (a mixture of experts, an MLP without a gate), is not in the
            table, or shares one activation module among its layers.
        ModelError: The object is no transformers model, does not look as its configuration says, or was changed
            so that its activation modules may be passed by (compiled, fused MLP kernels).
    """
    config: Any = getattr(model, "config", None)
    named = getattr(config, "model_type", None)
    if not named:
        raise ModelError(
            f"a {type(model).__name__} has no configuration with a model_type, so its neurons cannot be found: "
            "give a model loaded with transformers"
        )
    family = _TEXT_FAMILIES.get(named, named)
    layout = LAYOUTS.get(family)
    if layout is None:
        raise _refusal(family, config)
    text: Any = config.text_config if family != named else config
    for name in ("num_hidden_layers", "intermediate_size"):
        if not isinstance(getattr(text, name, None), int):
            raise drift_error("transformers", f"gives the configuration of this {family} model no number {name}")
    decoder = _decoder(model, family)
    _refuse_compiled(model, decoder, family)
    layers = list(decoder.layers)
    if len(layers) != text.num_hidden_layers:
        raise ModelError(
            f"this {family} model has {len(layers)} layers where its configuration says {text.num_hidden_layers}: "
            "load it again, whole"
        )
    # `remove_duplicate=False`, because a module may be reached by two names and the decoder by either.
    prefix = next((name for name, module in model.named_modules(remove_duplicate=False) if module is decoder), "")
    sites = tuple(
        GateSite(
            number,
            ".".join(part for part in (prefix, "layers", str(number), "mlp", layout.activation) if part),
            _activation(layer, layout, family, number, text.intermediate_size),
        )
        for number, layer in enumerate(layers)
    )
    if len({id(site.module) for site in sites}) != len(sites):
        raise NeedsNotMetError(
            f"this {family} model shares one activation module among layers, so a neuron's layer cannot be told: "
            "give each layer its own (copy.deepcopy), or load it with transformers' own class of the family"
        )
    return Gates(family, len(sites), int(text.intermediate_size), sites)


def require_known_family(config: Any) -> None:
    """Refuse a model of a family that is not in :data:`LAYOUTS`.

    Args:
        config: transformers' configuration of the model, or of the part of it that writes text.

    Raises:
        NeedsNotMetError: Names the family and says why.
    """
    family = _TEXT_FAMILIES.get(config.model_type, config.model_type)
    if family not in LAYOUTS:
        raise _refusal(family, config)


@contextmanager
def captured(gates: Gates, visit: Visit) -> Iterator[None]:
    """Call a function with the output of every gate activation while the block runs.

    The model computes what it would compute without: what ``visit`` returns is ignored. If something else has hooks
    on the same modules (an intervention), ``visit`` sees the output after those that were registered before.

    Args:
        gates: Where to listen.
        visit: Called with the layer's number and the activation [batch, tokens, neurons], detached but not copied:
            it must not be changed in place. An exception that it raises ends the forward pass.

    Raises:
        ModelError: An activation has another width than the gates say; or, when the block ends without another
            error, some layers ran more often than others, so that what was captured does not belong together.
    """
    calls = [0] * gates.layers
    with ExitStack() as hooks:
        for site in gates.sites:
            hooks.callback(site.module.register_forward_hook(_listener(site, gates, visit, calls)).remove)
        yield
    if min(calls) != max(calls):
        few, many = calls.index(min(calls)), calls.index(max(calls))
        raise ModelError(
            f"the gate activation of layer {few} of the {gates.family} model ran {calls[few]} times, that of layer "
            f"{many} {calls[many]} times: a forward pass was cut short, or something passes by the layer's activation "
            "module; capture again with the model as loaded"
        )


def check_shape(gates: Gates, layers: int, neurons: int, what: str) -> None:
    """Check that neurons found elsewhere fit this model.

    Args:
        gates: The neurons of the model.
        layers: Layers that ``what`` was made for.
        neurons: Neurons in a layer that ``what`` was made for.
        what: What is to be used with the model, for the error; names the file.

    Raises:
        ModelError: The shapes differ; the text names both.
    """
    if (layers, neurons) != (gates.layers, gates.neurons):
        raise ModelError(
            f"{what} is for {layers} layers of {neurons} neurons, but this {gates.family} model has {gates.layers} "
            f"layers of {gates.neurons}: load the model that it was made with, or fit the method for this one"
        )


def _listener(site: GateSite, gates: Gates, visit: Visit, calls: list[int]) -> Callable[..., None]:
    def listen(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            raise drift_error("transformers", f"gives {describe(output)} from {site.name} instead of a tensor")
        if output.shape[-1] != gates.neurons:
            raise ModelError(
                f"{site.name} gave {output.shape[-1]} neurons where the {gates.family} model should have "
                f"{gates.neurons}: load it unsharded"
            )
        visit(site.layer, output.detach())
        calls[site.layer] += 1

    return listen


def _decoder(model: Any, family: str) -> Any:
    """Give the module whose ``layers`` are the decoder's."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise drift_error(
            "transformers",
            f"gives {type(model).__name__} no list of decoder layers (so do classes of others for the {family} family)",
        )
    return decoder


def _activation(layer: Any, layout: Layout, family: str, number: int, neurons: int) -> nn.Module:
    """Give a layer's activation module, once it is sure that the layer is what the table says."""
    mlp = getattr(layer, "mlp", None)
    activation = getattr(mlp, layout.activation, None)
    projection = getattr(mlp, layout.projection, None)
    if not isinstance(activation, nn.Module) or not isinstance(projection, nn.Module):
        raise drift_error(
            "transformers",
            f"gives layer {number} of this {family} model no modules mlp.{layout.activation} and "
            f"mlp.{layout.projection} (fused MLP kernels take them away, too)",
        )
    width = getattr(projection, "out_features", None)
    if width is not None and width != layout.parts * neurons:
        raise ModelError(
            f"layer {number} of this {family} model has mlp.{layout.projection} of width {width} where the "
            f"configuration says {layout.parts * neurons}: load it unsharded, with the configuration it was saved with"
        )
    # A fused kernel (Liger's, say) put over an instance's forward never calls the activation module. The hooks with
    # which accelerate moves weights replace it as well, but they call what was there.
    if "forward" in vars(mlp) and not hasattr(mlp, "_hf_hook"):
        raise ModelError(
            f"the MLP of layer {number} of this {family} model was given another forward, which may pass by its "
            "activation module: load the model without fused MLP kernels"
        )
    return activation


def _refuse_compiled(model: nn.Module, decoder: nn.Module, family: str) -> None:
    """Refuse a compiled model: torch may skip hooks that are registered after it was compiled."""
    compiled = (getattr(module, "_compiled_call_impl", None) is not None for module in (model, *decoder.modules()))
    if type(model).__name__ == "OptimizedModule" or any(compiled):
        raise ModelError(
            f"this {family} model is compiled, so hooks on its activations may be skipped: give it uncompiled"
        )


def _refusal(family: str, config: Any) -> NeedsNotMetError:
    """Make the error for a family that is not in the table."""
    known = ", ".join(sorted({*LAYOUTS, *_TEXT_FAMILIES}))
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    experts = next((found for key in _EXPERT_COUNTS if (found := getattr(text, key, None))), None)
    if experts:
        return NeedsNotMetError(
            f"model family {family!r} is a mixture of {experts} experts, where a neuron does not see every token: "
            f"use a dense model ({known}) or a method that only prompts"
        )
    if family in _UNGATED:
        return NeedsNotMetError(
            f"model family {family!r} has an MLP without a gate, so it has no gated activations: "
            f"use a model that has them ({known}) or a method that only prompts"
        )
    return NeedsNotMetError(
        f"model family {family!r} is not known here: use one of {known}, a method that only prompts, or, if its MLP "
        "is gated, add it with a test to LAYOUTS in personalitybench/activations/layouts.py"
    )
