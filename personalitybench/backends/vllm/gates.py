"""The custom op in the place of every decoder MLP's activation module, and the search for those places.

One opaque op takes the MLP's whole local input, gate and up, after any quantised product and any adapter. Its layer is
a tensor, not a number, so that all layers stay the same graph for the compiler. What it does is decided by the
memory of the engine whose turn it is (:class:`~personalitybench.backends.vllm.state.GateState`), never by Python that
a graph would leave out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul

from personalitybench.backends.vllm.state import KINDS, GateState
from personalitybench.errors import ModelError, NeedsNotMetError

_library = torch.library.Library("personalitybench", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch
_library.define(  # type: ignore[no-untyped-call]  # torch
    "gate_activation(Tensor inputs, Tensor layer, int kind) -> Tensor"
)


class _Turn:
    """The engine of this process whose forward pass is under way; a process may hold several."""

    state: GateState | None = None


def take_turn(state: GateState) -> None:
    """Say which engine's forward pass comes next in this process."""
    _Turn.state = state


def _on_cpu(inputs: Tensor, layer: Tensor, kind: int) -> Tensor:
    if _Turn.state is None:
        raise ModelError("the gate op ran before its model was loaded: use load_format=personalitybench")
    return _Turn.state.apply(inputs, int(layer), kind)


def _on_cuda(inputs: Tensor, layer: Tensor, kind: int) -> Tensor:
    from personalitybench.backends.vllm.kernel import launch  # noqa: PLC0415 (needs Triton)

    if _Turn.state is None:
        raise ModelError("the gate op ran before its model was loaded: use load_format=personalitybench")
    return launch(_Turn.state, inputs, layer, kind)


def _shape_only(inputs: Tensor, layer: Tensor, kind: int) -> Tensor:  # noqa: ARG001 (the op's signature)
    return inputs.new_empty((*inputs.shape[:-1], inputs.shape[-1] // 2))


_library.impl("gate_activation", _on_cpu, "CPU")  # type: ignore[no-untyped-call]  # torch
_library.impl("gate_activation", _on_cuda, "CUDA")  # type: ignore[no-untyped-call]  # torch
torch.library.register_fake("personalitybench::gate_activation", _shape_only, lib=_library)


class GateActivation(nn.Module):
    """``activation(gate) * up`` with edits and counts, in the place of vLLM's module.

    A module of a type that vLLM does not know: its fused activation and quantisation goes by type and would pass by
    an edited module of its own.
    """

    def __init__(self, layer: int, kind: int, device: torch.device) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("layer", torch.tensor(layer, dtype=torch.int32, device=device), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Take [tokens, 2 x neurons], give [tokens, neurons]."""
        output: Tensor = torch.ops.personalitybench.gate_activation(inputs, self.layer, self.kind)
        return output


@dataclass(frozen=True)
class GatePlace:
    """An MLP whose activation module is to be replaced.

    Attributes:
        layer: Number of the decoder layer.
        name: Dotted name of the MLP.
        mlp: The MLP.
        kind: Index into :data:`~personalitybench.backends.vllm.state.KINDS`.
    """

    layer: int
    name: str
    mlp: nn.Module
    kind: int


_DECODER_MLP = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp$")


def find_places(model: nn.Module, layers: int, neurons: int) -> list[GatePlace]:
    """Find the MLP of each decoder layer of a vLLM model.

    Args:
        model: As vLLM loaded it.
        layers: Layers that its configuration says.
        neurons: Neurons of a layer on this device.

    Raises:
        NeedsNotMetError: A mixture of experts, an MLP without a gate, or an unknown activation.
        ModelError: Not every layer has such a place.
    """
    found: dict[int, GatePlace] = {}
    for name, module in model.named_modules():
        match = _DECODER_MLP.search(name)
        if match is None:
            continue
        activation = getattr(module, "act_fn", None)
        if not hasattr(module, "gate_up_proj") or activation is None:
            raise NeedsNotMetError(
                f"{name} of {type(model).__name__} is a {type(module).__name__}, not an MLP with a gate: steering "
                "needs a dense model with gated MLPs, or a method that only prompts"
            )
        place = GatePlace(int(match[1]), name, module, _kind(activation, name))
        if place.layer in found:
            raise ModelError(f"{type(model).__name__} has two MLPs of layer {place.layer}: {name} is one of them")
        width = getattr(module.gate_up_proj, "output_size_per_partition", 2 * neurons)
        if width != 2 * neurons:
            raise ModelError(f"{name} has {width // 2} neurons on this device, its configuration says {neurons}")
        found[place.layer] = place
    if sorted(found) != list(range(layers)):
        raise ModelError(
            f"{len(found)} of {layers} layers of {type(model).__name__} have an MLP that can be steered: "
            "the plug-in was not tested with this model class"
        )
    return [found[layer] for layer in range(layers)]


def replace_activations(places: list[GatePlace], device: torch.device) -> dict[int, Any]:
    """Put the op in place of the activation modules.

    Returns:
        vLLM's own module of each kind.
    """
    stock: dict[int, Any] = {}
    for place in places:
        stock.setdefault(place.kind, place.mlp.act_fn)
        # Each its own: Gemma-3's layers share one module.
        place.mlp.act_fn = GateActivation(place.layer, place.kind, device)
    return stock


def _kind(activation: nn.Module, name: str) -> int:
    if type(activation) is SiluAndMul:
        return KINDS.index("silu")
    if type(activation) is GeluAndMul and activation.approximate == "tanh":
        return KINDS.index("gelu_tanh")
    raise NeedsNotMetError(
        f"{name} has the activation {type(activation).__name__}, which steering does not know: known are SiLU and "
        "GELU (tanh) before a product with the up projection"
    )
