"""How a personality is induced: one file a method. Methods turn questions into requests; they never run models."""

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
