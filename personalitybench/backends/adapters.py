"""LoRA adapters on transformers: each row of a batch is answered with its own, at its own strength, or with none.

peft puts its layers into the model when the first adapter is loaded, and holds the matrices. They stay switched off:
they call what they replaced, and within :meth:`AdapterPool.chosen` what the adapters of the rows add is added to that.
A model that never needs an adapter is not touched.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from personalitybench.backends.adapter_files import AdapterConfig, AdapterFiles, Stamp, file_stamp, read_adapter
from personalitybench.backends.adapter_products import RowProducts
from personalitybench.errors import ConfigurationError, DependencyDriftError, ModelError, StorageError
from personalitybench.versions import drift_error

# How peft names the weights of plain LoRA on a linear layer.
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")


_REMEDY = "load the model that it was trained for, or fit the method for this one"


class AdapterPool:
    """Adapters of one model, loaded when they are first wanted.

    Args:
        model: A transformers model. Its linear layers are replaced by peft's around them when the first adapter is
            loaded; the object stays the same.
        limit: How many adapters stay loaded, an adapter at two strengths being two; what was not used for longest
            goes. A batch that needs more keeps more as long as it runs.

    Raises:
        ConfigurationError: The model has adapters of its own.
    """

    def __init__(self, model: nn.Module, limit: int = 16) -> None:
        if any(isinstance(module, (BaseTunerLayer, PeftModel)) for module in model.modules()):
            raise ConfigurationError(
                "the model was loaded with an adapter of its own (peft=...), so rows cannot have adapters: leave it out"
            )
        self._model = model
        self._limit = limit
        self._shapes = {name: shape for name, module in model.named_modules() if (shape := _linear_shape(module))}
        self._peft: Any = None
        self._loaded: OrderedDict[str, Path] = OrderedDict()  # folders by name, the one used last at the end
        self._known: dict[Path, tuple[Stamp, str]] = {}
        self._active = False

    @property
    def parameters(self) -> int:
        """How many numbers the loaded adapters hold; transformers counts them with the model's own."""
        return sum(layer.weight.numel() for name in self._loaded for site in self._sites(name) for layer in site)

    def names(self, rows: Sequence[tuple[Path, float] | None]) -> list[str | None]:
        """Load what a batch needs.

        Args:
            rows: For each row the folder of its adapter, and what its scale is multiplied by; None, or a strength of
                zero, for no adapter.

        Returns:
            A name for each row with an adapter, for :meth:`chosen`. It says what the adapter is (a hash of its files)
            and how strong: equal names, equal effects.

        Raises:
            StorageError: A folder is missing or damaged.
            NeedsNotMetError: Another kind of adapter.
            ModelError: An adapter of another model; the text names the module and the shapes.
        """
        if self._active:
            raise ConfigurationError("adapters are chosen already: leave that context before others are loaded")
        wanted: dict[tuple[Path, float], str] = {}
        for row in rows:
            if row is not None and row[1] and row not in wanted:
                wanted[row] = self._load(*row)
        for name in [name for name in self._loaded if name not in wanted.values()]:
            if len(self._loaded) <= self._limit:
                break
            self._drop(name)
        return [None if row is None else wanted.get(row) for row in rows]

    @contextmanager
    def chosen(self, names: Sequence[str | None]) -> Iterator[None]:
        """Answer each row of a batch with its adapter while the block runs; afterwards with none, whatever happens.

        Rows without an adapter keep their bits.

        Args:
            names: For each row of the batch, a name from :meth:`names`, or None.

        Raises:
            ConfigurationError: Adapters are chosen already, one is not loaded, or the model was called with a batch
                of another size.
            ModelError: No layer of an adapter was ever reached, so that it would silently have done nothing.
        """
        wanted = {name for name in names if name is not None}
        if missing := sorted(wanted - self._loaded.keys()):
            raise ConfigurationError(f"adapter {missing[0]} is not loaded: ask names() for it before each batch")
        if self._active:
            raise ConfigurationError("adapters are chosen already: leave that context before another")
        reached: set[str] = set()

        def adapt(layer: nn.Module) -> RemovableHandle:
            products = RowProducts(layer, names)

            def add(_: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor:
                if len(args[0]) != len(names):
                    raise ConfigurationError(
                        f"adapters were chosen for {len(names)} rows but a layer got {list(args[0].shape)}: give one "
                        "name a row (beams repeat rows), and use a model whose layers see the rows of a batch apart"
                    )
                reached.update(products.names)
                products.add(args[0], result)
                return result

            return layer.register_forward_hook(add)

        handles = []
        self._active = True
        try:
            for layer in self._layers():
                if not wanted.isdisjoint(layer.lora_A.keys()):
                    handles.append(adapt(layer))  # noqa: PERF401 (those that there are go, too, where one fails)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._active = False
        if passed_by := sorted(wanted - reached):
            raise ModelError(
                f"adapter {self._loaded[passed_by[0]]} had no effect: none of the layers that it adapts was "
                "called (a fused or compiled kernel?); load the model without it"
            )

    def _layers(self) -> list[Any]:
        """All of peft's layers in the model."""
        return [module for module in self._model.modules() if isinstance(module, LoraLayer)]

    def _sites(self, name: str) -> list[tuple[Any, Any]]:
        """The two matrices of an adapter, in each layer that has them."""
        return [(layer.lora_A[name], layer.lora_B[name]) for layer in self._layers() if name in layer.lora_A]

    def _load(self, folder: Path, strength: float) -> str:
        """Load an adapter if it is not loaded, under a name made of its content and strength."""
        stamp = file_stamp(folder)
        known = self._known.get(folder)
        if stamp is not None and known is not None and known[0] == stamp:
            name = _name(known[1], strength)
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return name
        files = read_adapter(folder)
        if stamp is not None:
            self._known[folder] = (stamp, files.sha256)
        name = _name(files.sha256, strength)
        if name not in self._loaded:
            weights, modules = self._checked_weights(files)
            self._add(name, files, weights, modules, strength)
        self._loaded[name] = folder
        self._loaded.move_to_end(name)
        return name

    def _checked_weights(self, files: AdapterFiles) -> tuple[dict[str, Tensor], list[str]]:
        """Read an adapter's weights, once it is sure that they are for this model's layers.

        Returns:
            The weights by peft's names, ``A`` [rank, inputs] and ``B`` [outputs, rank] for each module that is adapted;
            and the names of these modules.
        """
        try:
            weights: dict[str, Tensor] = read_tensors(files.weights)
        except SafetensorError as error:
            raise StorageError(
                f"adapter {files.folder} is truncated or damaged ({error}): fit the method again"
            ) from error
        parts: dict[str, set[str]] = {}
        for key, tensor in sorted(weights.items()):  # safetensors gives them in any order
            match = _KEY.fullmatch(key)
            if match is None:
                raise ModelError(
                    f"adapter {files.folder} holds {key}, which is not a weight of LoRA on a linear layer: train it "
                    "without"
                )
            self._check_matrix(files, match["module"], match["part"], tensor)
            parts.setdefault(match["module"], set()).add(match["part"])
        whole = {module for module, found in parts.items() if found == {"A", "B"}}
        if lacking := sorted((self._targets(files.config) | parts.keys()) - whole):
            raise ModelError(
                f"{_origin(files)} has no whole weights for {lacking[0]}, which its configuration targets in this "
                f"model: {_REMEDY}"
            )
        if surplus := sorted(whole - self._targets(files.config)):
            raise ModelError(
                f"{_origin(files)} has weights for {surplus[0]}, which its configuration does not target: {_REMEDY}"
            )
        if not whole:
            raise StorageError(f"adapter {files.folder} holds no weights: fit the method again")
        return weights, sorted(whole)

    def _check_matrix(self, files: AdapterFiles, module: str, part: str, matrix: Tensor) -> None:
        """Check that one of an adapter's matrices fits a layer of the model."""
        shape = self._shapes.get(module)
        if shape is None:
            raise ModelError(
                f"{_origin(files)} adapts {module}, but this model has no linear layer of that name: {_REMEDY}"
            )
        ranks = files.config.rank_pattern
        rank = ranks.get(get_pattern_key(list(ranks), module), files.config.r)
        expected = [rank, shape[0]] if part == "A" else [shape[1], rank]
        if list(matrix.shape) != expected:
            raise ModelError(
                f"{_origin(files)} has for {module} a matrix {part} of shape {list(matrix.shape)}, but at rank {rank} "
                f"this model needs {expected}: {_REMEDY}"
            )
        if not bool(torch.isfinite(matrix).all()):
            raise ModelError(
                f"{_origin(files)} has for {module} a matrix {part} with numbers that are not finite: its training "
                "failed, fit the method again"
            )

    def _targets(self, config: AdapterConfig) -> set[str]:
        """The linear layers of the model that an adapter's configuration means."""
        meant = LoraConfig(
            target_modules=config.target_modules,
            exclude_modules=config.exclude_modules,
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
        )
        # An excluded module gives an object that is neither True nor a match.
        found = {name: check_target_module_exists(meant, name) for name in self._shapes}
        return {name for name, verdict in found.items() if verdict is True or isinstance(verdict, re.Match)}

    def _add(
        self, name: str, files: AdapterFiles, weights: dict[str, Tensor], modules: list[str], strength: float
    ) -> None:
        """Give an adapter to peft, which then holds it and serves nobody with it."""
        try:
            # peft draws the matrices before they are loaded: the drawing of answers must not notice. What it warns of,
            # weights too many or too few, is checked.
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                self._give_to_peft(name, files.config, weights, modules, strength)
            self._model.eval()  # what peft adds comes in training mode
            for layer in self._layers():
                layer.enable_adapters(False)
            self._check_loaded(name, weights, modules)
        except (AttributeError, TypeError, KeyError) as error:
            self._forget(name)
            raise drift_error("peft", f"loads or switches adapters in another way ({error})") from error
        except (ValueError, RuntimeError) as error:
            self._forget(name)
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"peft cannot load adapter {files.folder} into this model: {first}") from error
        except DependencyDriftError:
            self._forget(name)
            raise
        self._prove_products(name, files, strength)

    def _give_to_peft(
        self, name: str, config: AdapterConfig, weights: dict[str, Tensor], modules: list[str], strength: float
    ) -> None:
        alpha: Any = config.lora_alpha * strength  # peft says int, and takes any number
        ours = LoraConfig(
            task_type="CAUSAL_LM",
            inference_mode=True,
            r=config.r,
            lora_alpha=alpha,
            use_rslora=config.use_rslora,
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern={key: own * strength for key, own in config.alpha_pattern.items()},
            target_modules=modules,
        )
        if self._peft is None:
            self._peft = PeftModel(self._model, ours, name)
        else:
            self._peft.add_adapter(name, ours)
        set_peft_model_state_dict(self._peft, weights, name)

    def _check_loaded(self, name: str, weights: dict[str, Tensor], modules: list[str]) -> None:
        """Compare what peft holds of an adapter with its file.

        Raises:
            DependencyDriftError: A layer has no adapter, or other matrices.
        """
        for module in modules:
            layer: Any = self._model.get_submodule(module)
            for part in ("A", "B"):
                held = getattr(layer, f"lora_{part}")[name].weight
                given = weights[f"base_model.model.{module}.lora_{part}.weight"]
                if not torch.equal(held.detach(), given.to(held.device, held.dtype)):
                    raise drift_error("peft", f"loaded other matrices than those of the file into {module}")

    def _prove_products(self, name: str, files: AdapterFiles, strength: float) -> None:
        """Compare our product of an adapter with peft's own, in one layer and on random input.

        Raises:
            ModelError: They are not finite.
            DependencyDriftError: They differ, or peft's layer does not have the attributes that are read.
        """
        try:
            layer = next(layer for layer in self._layers() if name in layer.lora_A)
            found, expected = self._products(layer, name)
        except (AttributeError, KeyError, TypeError, StopIteration) as error:
            self._forget(name)
            raise drift_error("peft", f"has other layers than adapters are served with ({error})") from error
        if not bool(torch.isfinite(expected).all()):
            self._forget(name)
            raise ModelError(
                f"adapter {files.folder} at strength {strength:g} adds numbers that are not finite (lora_alpha "
                f"{files.config.lora_alpha:g}): lower the strength, or fit the method again"
            )
        distance = float((found - expected).abs().max())
        # Roundings of the layer's own type, and those of sums of products, which have at least float32.
        rounding = 4 * torch.finfo(expected.dtype).eps + 256 * torch.finfo(torch.float32).eps
        if not distance <= rounding * float(expected.abs().max()):
            self._forget(name)
            raise drift_error("peft", f"adds another product to a layer than is served here (off by {distance:g})")

    def _products(self, layer: Any, name: str) -> tuple[Tensor, Tensor]:
        """Run one layer with an adapter on random input, by our products and by peft; the adapter is off afterwards."""
        weight = layer.lora_A[name].weight
        dtype: Any = self._model.dtype
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=[]):
                x = torch.randn(1, 1, weight.shape[1]).to(weight.device, dtype)
                found = layer(x)
                RowProducts(layer, [name]).add(x, found)
                layer.set_adapter(name)
                layer.enable_adapters(True)
                return found, layer(x)
        finally:
            layer.enable_adapters(False)
            for matrix in (layer.lora_A[name], layer.lora_B[name]):
                matrix.requires_grad_(False)

    def _forget(self, name: str) -> None:
        """Take away what peft has of an adapter that could not be loaded whole."""
        if self._peft is not None:  # whole, it leaves by peft's own way, which chooses another active adapter
            with suppress(AttributeError, KeyError, TypeError, ValueError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._peft.delete_adapter(name)
        for layer in self._layers():
            with suppress(AttributeError, KeyError, TypeError):  # of a peft that changed, which is told already
                layer.delete_adapter(name)
                layer.enable_adapters(False)
        if self._peft is not None:
            self._peft.peft_config.pop(name, None)

    def _drop(self, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another adapter becomes the active one: none is, outside of chosen()
            self._peft.delete_adapter(name)
        del self._loaded[name]


def _name(sha256: str, strength: float) -> str:
    """Name an adapter at a strength; peft wants no dots in names."""
    return f"{sha256[:32]}-{strength!r}".replace(".", "_")


def _origin(files: AdapterFiles) -> str:
    """Name an adapter, and the model that it says it was trained for."""
    base = files.config.base_model_name_or_path
    return f"adapter {files.folder}" + (f" (trained for {base!r})" if base else "")


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer (of whatever precision); None for other modules."""
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):  # the latter are GPT-2's
        if hasattr(module, inputs) and hasattr(module, outputs):
            return int(getattr(module, inputs)), int(getattr(module, outputs))
    return None
