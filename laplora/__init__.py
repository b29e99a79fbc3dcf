"""laplora: calibrated probabilities for LoRA-tuned LLM classifiers.

The names below are the public ones. Each is imported when it is first asked for, so ``import laplora`` itself
loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from laplora.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactIncompatibleError,
    ArtifactNotFoundError,
    ConfigError,
    DataError,
    DownloadError,
    FactorizationError,
    GoldenMismatchError,
    InvalidInputError,
    LabelTokenError,
    LaploraError,
    ModelError,
    NonFiniteError,
    PriorError,
    TooManyTokensError,
)

if TYPE_CHECKING:
    from laplora.artifact import Artifact, Manifest, read_artifact
    from laplora.calibration import conformal_threshold, fit_temperature, prediction_sets, temperature_probs
    from laplora.metrics import Evaluation, evaluate_probs
    from laplora.option_order import option_orders, permute_choices, restore_contrasts, restore_logits
    from laplora.predictive import PosteriorPredictive, posterior_predictive
    from laplora.predictor import Prediction, Predictor
    from laplora.prompts import TEMPLATES, EncodedRow, PromptTemplate
    from laplora.uncertainty import FLAGS, Uncertainty, decompose

__version__ = "0.1.0"

__all__ = [
    "FLAGS",
    "TEMPLATES",
    "Artifact",
    "ArtifactCorruptError",
    "ArtifactError",
    "ArtifactIncompatibleError",
    "ArtifactNotFoundError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "EncodedRow",
    "Evaluation",
    "FactorizationError",
    "GoldenMismatchError",
    "InvalidInputError",
    "LabelTokenError",
    "LaploraError",
    "Manifest",
    "ModelError",
    "NonFiniteError",
    "PosteriorPredictive",
    "Prediction",
    "Predictor",
    "PriorError",
    "PromptTemplate",
    "TooManyTokensError",
    "Uncertainty",
    "__version__",
    "conformal_threshold",
    "decompose",
    "evaluate_probs",
    "fit_temperature",
    "option_orders",
    "permute_choices",
    "posterior_predictive",
    "prediction_sets",
    "read_artifact",
    "restore_contrasts",
    "restore_logits",
    "temperature_probs",
]

#: Where the names that cost an import live.
_HOMES = {
    "artifact": ("Artifact", "Manifest", "read_artifact"),
    "calibration": ("conformal_threshold", "fit_temperature", "prediction_sets", "temperature_probs"),
    "metrics": ("Evaluation", "evaluate_probs"),
    "option_order": ("option_orders", "permute_choices", "restore_contrasts", "restore_logits"),
    "predictive": ("PosteriorPredictive", "posterior_predictive"),
    "predictor": ("Prediction", "Predictor"),
    "prompts": ("TEMPLATES", "EncodedRow", "PromptTemplate"),
    "uncertainty": ("FLAGS", "Uncertainty", "decompose"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"laplora.{module}"), name)
            return value
    raise AttributeError(f"module 'laplora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
