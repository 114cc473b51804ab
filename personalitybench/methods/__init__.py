"""How a personality is induced: one file a method. Methods turn questions into requests; only a fit runs models."""

from personalitybench.methods.base import InductionMethod, MethodSettings, create_method, methods
from personalitybench.methods.fitting import Artifact, FitContext, MethodContext
from personalitybench.methods.induction import Induction, Need

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
