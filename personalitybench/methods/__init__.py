"""How a personality is induced: one file a method. Methods turn questions into requests; only a fit runs models."""

from personalitybench.methods.base import (
    Artifact,
    FitContext,
    Induction,
    InductionMethod,
    MethodContext,
    MethodSettings,
    Need,
    create_method,
    methods,
)

__all__ = [
    "Artifact",
    "FitContext",
    "Induction",
    "InductionMethod",
    "MethodContext",
    "MethodSettings",
    "Need",
    "create_method",
    "methods",
]
