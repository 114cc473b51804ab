"""``load_format=personalitybench``: vLLM's own loader, and then the gate op in every decoder MLP.

Between loading the weights and everything that follows (profiling, compilation, graph capture), so that all of it
sees the op.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from personalitybench import __version__
from personalitybench.activations.bins import Bins
from personalitybench.activations.layouts import require_known_family
from personalitybench.activations.statistics import StatisticsBuilder
from personalitybench.backends.needs import LOAD_FORMAT
from personalitybench.backends.vllm.gates import find_places, replace_activations, take_turn
from personalitybench.backends.vllm.router import Router
from personalitybench.backends.vllm.seams import GateControl, install_seams
from personalitybench.backends.vllm.state import GateState
from personalitybench.backends.vllm.versions import check_version, vllm_version
from personalitybench.errors import NeedsNotMetError
from personalitybench.validation import validate


class CountingOptions(BaseModel):
    """What is counted, where anything is.

    Attributes:
        shards: Parts of the questions.
        bins: Bins of the histogram.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: int = Field(default=20, ge=1)
    bins: Bins = Field(default_factory=Bins.default)


class PluginOptions(BaseModel):
    """``additional_config={"personalitybench": {...}}`` of the engine.

    Attributes:
        slots: Interventions in use at once.
        statistics: Room for counts; without it nothing can be counted, and no memory is taken.
        weights: How the weights are loaded: any other load format of vLLM.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int = Field(default=16, ge=1, le=1024)
    statistics: CountingOptions | None = None
    weights: str = "auto"


def plugin_options(vllm_config: VllmConfig) -> PluginOptions:
    """Read the options of an engine.

    Raises:
        ConfigurationError: An unknown or wrong one.
    """
    given = vllm_config.additional_config
    options = dict(given.get(LOAD_FORMAT) or {}) if isinstance(given, Mapping) else {}
    options.pop("plugin", None)
    return validate(PluginOptions, options, f"additional_config[{LOAD_FORMAT!r}]")


class GateModelLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Loads as vLLM does, then takes over the activation modules."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        self._own: BaseModelLoader | None = None

    def _stock(self, weights: str = "auto") -> BaseModelLoader:
        if self._own is None:
            config = copy.copy(self.load_config)
            config.load_format = weights
            self._own = get_model_loader(config)
        return self._own

    def download_model(self, model_config: ModelConfig) -> None:
        """Download the weights."""
        self._stock().download_model(model_config)

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Load weights into a model that is there already."""
        self._stock().load_weights(model, model_config)

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        """Load the model and put the gate op into it.

        Raises:
            NeedsNotMetError: The version of vLLM, the model or a feature that is on was not made for this.
            ModelError: Not every layer could be reached.
        """
        check_version(vllm_version())
        options = plugin_options(vllm_config)
        _refuse_features(vllm_config)
        text = model_config.hf_text_config
        require_known_family(text)
        # Part of the hash that names vLLM's compiled models: one that was compiled without the op is never taken.
        given = dict(vllm_config.additional_config) if isinstance(vllm_config.additional_config, Mapping) else {}
        marked = options.model_dump(mode="json") | {"plugin": __version__}
        vllm_config.additional_config = given | {LOAD_FORMAT: marked}
        model: nn.Module = self._stock(options.weights).load_model(
            vllm_config=vllm_config, model_config=model_config, prefix=prefix
        )
        parallel = vllm_config.parallel_config.tensor_parallel_size
        layers, neurons = int(text.num_hidden_layers), int(text.intermediate_size)
        local = neurons // parallel
        device = next(model.parameters()).device
        language_model = getattr(model, "get_language_model", None)  # of a model that also sees images
        places = find_places(language_model() if callable(language_model) else model, layers, local)
        with torch.device(device):
            counting = options.statistics
            state = GateState(
                layers=layers,
                neurons=local,
                first_neuron=local * get_tensor_model_parallel_rank() if parallel > 1 else 0,
                all_neurons=neurons,
                slots=options.slots,
                max_tokens=vllm_config.scheduler_config.max_num_batched_tokens,
                statistics=StatisticsBuilder(layers, local, counting.shards, counting.bins, device)
                if counting
                else None,
                stock=replace_activations(places, device),
                device=device,
            )
        router = Router(vllm_config.scheduler_config.max_num_batched_tokens, counting.shards if counting else 0)
        install_seams(model, vllm_config, GateControl(state, router))
        take_turn(state)
        return model


def _refuse_features(vllm_config: VllmConfig) -> None:
    """Refuse what would make the orders of a step meet other tokens than theirs."""
    parallel = vllm_config.parallel_config
    refused: dict[str, Any] = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "data parallelism": parallel.data_parallel_size > 1,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size > 1,
        "micro-batches (DBO)": parallel.use_ubatching,
    }
    wrong = [name for name, on in refused.items() if on]
    if wrong:
        raise NeedsNotMetError(
            f"load_format={LOAD_FORMAT} does not work with {' or '.join(wrong)}: switch it off for this model"
        )
