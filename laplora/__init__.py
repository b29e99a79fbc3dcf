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
    ArtifactWriteError,
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
    from laplora.artifact import Artifact, read_artifact
    from laplora.calibration import (
        aps_sets,
        aps_threshold,
        conformal_threshold,
        empirical_coverage,
        fit_temperature,
        prediction_sets,
        temperature_probs,
    )
    from laplora.cross_fitting import cross_fitted
    from laplora.distilled import Distillation, DistilledCovariance, distill
    from laplora.jacobians import contrast_jacobians, find_blocks
    from laplora.leave_one_out import choose_by_leave_one_out
    from laplora.manifest import Manifest
    from laplora.members import dropout_masks, member_weights
    from laplora.metrics import Evaluation, evaluate_probs
    from laplora.option_order import option_orders, permute_choices, restore_contrasts, restore_logits
    from laplora.posterior import Posterior, Prior, block_precisions
    from laplora.prediction import Prediction
    from laplora.predictive import PosteriorPredictive, posterior_predictive
    from laplora.predictives import PREDICTIVES, PredictiveSpec, fit_predictive_temperature, predictive_probs
    from laplora.predictor import Predictor
    from laplora.prior import PriorChoice, choose_by_evidence, choose_by_validation
    from laplora.prompts import TEMPLATES, EncodedRow, PromptTemplate
    from laplora.ranking import error_auprc, error_auroc, risk_coverage
    from laplora.recommendation import Recommendation, recommend
    from laplora.review import accept_threshold
    from laplora.states import States, StateTape
    from laplora.structures import STRUCTURES, StructureSettings, fit_posterior
    from laplora.subset import select_blocks
    from laplora.uncertainty import FLAGS, Uncertainty, decompose

__version__ = "0.1.0"

__all__ = [
    "FLAGS",
    "PREDICTIVES",
    "STRUCTURES",
    "TEMPLATES",
    "Artifact",
    "ArtifactCorruptError",
    "ArtifactError",
    "ArtifactIncompatibleError",
    "ArtifactNotFoundError",
    "ArtifactWriteError",
    "ConfigError",
    "DataError",
    "Distillation",
    "DistilledCovariance",
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
    "Posterior",
    "PosteriorPredictive",
    "Prediction",
    "PredictiveSpec",
    "Predictor",
    "Prior",
    "PriorChoice",
    "PriorError",
    "PromptTemplate",
    "Recommendation",
    "StateTape",
    "States",
    "StructureSettings",
    "TooManyTokensError",
    "Uncertainty",
    "__version__",
    "accept_threshold",
    "aps_sets",
    "aps_threshold",
    "block_precisions",
    "choose_by_evidence",
    "choose_by_leave_one_out",
    "choose_by_validation",
    "conformal_threshold",
    "contrast_jacobians",
    "cross_fitted",
    "decompose",
    "distill",
    "dropout_masks",
    "empirical_coverage",
    "error_auprc",
    "error_auroc",
    "evaluate_probs",
    "find_blocks",
    "fit_posterior",
    "fit_predictive_temperature",
    "fit_temperature",
    "member_weights",
    "option_orders",
    "permute_choices",
    "posterior_predictive",
    "prediction_sets",
    "predictive_probs",
    "read_artifact",
    "recommend",
    "restore_contrasts",
    "restore_logits",
    "risk_coverage",
    "select_blocks",
    "temperature_probs",
]

#: Where the names that cost an import live.
_HOMES = {
    "artifact": ("Artifact", "read_artifact"),
    "calibration": (
        "aps_sets",
        "aps_threshold",
        "conformal_threshold",
        "empirical_coverage",
        "fit_temperature",
        "prediction_sets",
        "temperature_probs",
    ),
    "cross_fitting": ("cross_fitted",),
    "distilled": ("DistilledCovariance", "Distillation", "distill"),
    "jacobians": ("contrast_jacobians", "find_blocks"),
    "leave_one_out": ("choose_by_leave_one_out",),
    "manifest": ("Manifest",),
    "members": ("dropout_masks", "member_weights"),
    "metrics": ("Evaluation", "evaluate_probs"),
    "option_order": ("option_orders", "permute_choices", "restore_contrasts", "restore_logits"),
    "posterior": ("Posterior", "Prior", "block_precisions"),
    "predictive": ("PosteriorPredictive", "posterior_predictive"),
    "predictives": ("PREDICTIVES", "PredictiveSpec", "fit_predictive_temperature", "predictive_probs"),
    "prediction": ("Prediction",),
    "predictor": ("Predictor",),
    "prior": ("PriorChoice", "choose_by_evidence", "choose_by_validation"),
    "prompts": ("TEMPLATES", "EncodedRow", "PromptTemplate"),
    "ranking": ("error_auprc", "error_auroc", "risk_coverage"),
    "recommendation": ("Recommendation", "recommend"),
    "review": ("accept_threshold",),
    "states": ("StateTape", "States"),
    "structures": ("STRUCTURES", "StructureSettings", "fit_posterior"),
    "subset": ("select_blocks",),
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
