"""``personalitybench-vllm``: lm-eval's vLLM model with the plug-in switched on and a canary at every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lm_eval.api.registry import register_model

from personalitybench.backends.needs import CAPABILITIES, STEERABLE_VLLM
from personalitybench.backends.vllm.canary import check_adapters, check_logits, check_tokens, edit_counts, to_prove
from personalitybench.backends.vllm.engine import engine_arguments
from personalitybench.backends.vllm.versions import let_lm_eval_find_vllm
from personalitybench.backends.wishes import KEY, Wish, warn_of_strength_zero
from personalitybench.errors import NeedsNotMetError

let_lm_eval_find_vllm()
from lm_eval.models.vllm_causallms import VLLM  # noqa: E402 (not before lm-eval can find vLLM)


@register_model(STEERABLE_VLLM)
class SteerableVLLM(VLLM):  # type: ignore[misc]  # lm-eval publishes no types
    """vLLM through lm-eval, with edits of gate activations and, loaded with ``enable_lora=True``, adapters.

    Attributes:
        steered_tokens: Tokens edited so far, over all steered requests; lm-eval writes it into its results.
    """

    capabilities: ClassVar[frozenset[str]] = CAPABILITIES[STEERABLE_VLLM]

    def __init__(self, pretrained: str, **kwargs: Any) -> None:
        if int(kwargs.get("data_parallel_size", 1)) > 1:
            raise NeedsNotMetError("steering cannot be proven on engines of lm-eval's data parallelism: leave it out")
        own = {"batch_size", "max_batch_size", "device"}
        passed = engine_arguments({key: value for key, value in kwargs.items() if key not in own})
        kept = {key: kwargs[key] for key in own - {"device"} if key in kwargs}
        super().__init__(pretrained, **kept, **passed)
        self.steered_tokens = 0
        self.logit_changes: dict[Wish, float] = {}

    def get_model_info(self) -> dict[str, Any]:
        """Add the canary to what lm-eval records of the model."""
        info: dict[str, Any] = super().get_model_info()
        changes = list(self.logit_changes.values())
        return info | {"steered_tokens": self.steered_tokens, "least_logit_change": min(changes, default=None)}

    def _model_generate(
        self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None
    ) -> Sequence[Any]:
        """Generate; every batch with wishes proves that they were fulfilled.

        Raises:
            ModelError: The canary failed.
        """
        extras = [getattr(params, "extra_args", None) for params in _each(sampling_params, len(requests))]
        wishes = [Wish.parse(extra) for extra in extras]
        if not generate or not any(wishes):
            plain: Sequence[Any] = super()._model_generate(requests, generate, sampling_params)
            return plain
        before = edit_counts(self.model)
        outputs: Sequence[Any] = super()._model_generate(requests, generate, sampling_params)
        check_adapters(outputs, wishes)
        self.steered_tokens += check_tokens(before, edit_counts(self.model), outputs, wishes)
        for tokens, output, wish, extra in zip(requests, outputs, wishes, extras, strict=True):
            if wish is not None and wish.intervention is not None and wish.strength == 0:
                warn_of_strength_zero(str(wish.intervention))
            first = list(output.outputs[0].token_ids[:1])
            if wish is None or wish in self.logit_changes or not to_prove(wish, len(output.outputs[0].token_ids)):
                continue
            self.logit_changes[wish] = check_logits(self.model, [*tokens, *first], (extra or {})[KEY], len(tokens))
        return outputs


def _each(sampling_params: Any, count: int) -> list[Any]:
    return list(sampling_params) if isinstance(sampling_params, list) else [sampling_params] * count
