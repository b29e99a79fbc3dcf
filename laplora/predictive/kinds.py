"""The names of the predictives that an artifact can serve."""

from __future__ import annotations

from typing import Literal

#: The predictives: the model alone, at a temperature, averaged over the posterior; heads; and several together.
PredictiveName = Literal[
    "map",
    "temperature",
    "laplace",
    "conditioned",
    "frozen",
    "encoder",
    "options",
    "rescaled",
    "corrected",
    "pooled",
]

#: Predictives of an adapter alone, by name.
PREDICTIVES: tuple[PredictiveName, ...] = ("map", "temperature", "laplace")
#: Those of one set of weights, without a spread.
SPREADLESS: frozenset[PredictiveName] = frozenset({"map", "temperature"})


def has_jacobians(name: PredictiveName) -> bool:
    """Return whether a predictive needs the Jacobians of the adapter's logits."""
    return name == "laplace"
