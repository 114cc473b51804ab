"""A model as a suite (or the command ``fit``) names it, as arguments for lm-eval's model class."""

from __future__ import annotations

from typing import Any

from personalitybench.backends.loading import model_arguments
from personalitybench.runs.suite import ModelSpec


def resolve_arguments(spec: ModelSpec) -> tuple[dict[str, Any], str | None]:
    """Arguments for lm-eval's model class, the model's name resolved.

    Returns:
        The arguments, and the revision of the weights where these are loaded here.

    Raises:
        ModelError: There is no such model.
    """
    return model_arguments(spec.backend, spec.name, spec.revision, spec.args)


def fit_arguments(spec: ModelSpec) -> dict[str, Any]:
    """Arguments besides the model's name; known although the model itself may be gone."""
    return {**spec.args, "revision": spec.revision} if spec.revision else dict(spec.args)
