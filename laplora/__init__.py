"""laplora: calibrated probabilities for LoRA-tuned LLM classifiers.

The names below are the public ones. Each is imported when it is first used, so ``import laplora`` itself loads neither
torch nor transformers. ``sklearn`` needs its package, and is imported by its name alone. Start reading at ``fitting``
(``fit``) and ``predictor`` (an artifact in, answers out); docs/architecture.md draws the packages, each importing only
what stands further down. ``client`` stands alone: it imports only ``errors``.
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
    ConditioningError,
    ConfigError,
    DataError,
    DownloadError,
    FactorizationError,
    GoldenMismatchError,
    InvalidInputError,
    LabelTokenError,
    LaploraError,
    LaploraWarning,
    ModelError,
    NonFiniteError,
    PriorError,
    StoreUnreachableError,
    TooManyTokensError,
    UpstreamAnswerError,
    UpstreamChangedError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamUnavailableError,
)

if TYPE_CHECKING:
    from laplora.answers.comparison import Comparison
    from laplora.answers.prediction import Prediction
    from laplora.artifact.folder import Artifact, read_artifact
    from laplora.artifact.manifest import Manifest
    from laplora.artifact.packaged import restore_packaged
    from laplora.classifier import Classifier
    from laplora.decisions.conformal import (
        conformal_threshold,
        empirical_coverage,
        prediction_sets,
    )
    from laplora.decisions.review import accept_threshold
    from laplora.decisions.temperature import fit_temperature, temperature_probs
    from laplora.decisions.thresholds import FLAGS
    from laplora.decisions.uncertainty import Uncertainty, decompose
    from laplora.execution.workers import Workers
    from laplora.fitting.calibrated import CalibratedPosterior
    from laplora.fitting.entry import fit
    from laplora.fitting.evaluation import Measured
    from laplora.fitting.heads import HeadsPosterior
    from laplora.fitting.loaded import condition, load
    from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
    from laplora.jacobians.states import States, StateTape
    from laplora.linearised import PosteriorPredictive
    from laplora.metrics.ranking import error_auprc, error_auroc, risk_coverage
    from laplora.metrics.scores import Evaluation, evaluate_probs
    from laplora.posterior.base import Posterior, Prior, block_precisions
    from laplora.posterior.passes import StructureSettings
    from laplora.posterior.structures import STRUCTURES, fit_posterior
    from laplora.posterior.subset import select_blocks
    from laplora.predictive.cross_fitting import cross_fitted
    from laplora.predictive.gaussian import posterior_predictive
    from laplora.predictive.kinds import PREDICTIVES
    from laplora.predictive.probs import predictive_probs
    from laplora.predictor import Predictor
    from laplora.prior.evidence import choose_by_evidence
    from laplora.prior.search import PriorChoice, choose_by_validation
    from laplora.prompts.rows import EncodedRow
    from laplora.prompts.templates import TEMPLATES, PromptTemplate
    from laplora.settings import FitSettings
    from laplora.upstream.remote_model import remote_model

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
    "CalibratedPosterior",
    "Classifier",
    "Comparison",
    "ConditioningError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "EncodedRow",
    "Evaluation",
    "FactorizationError",
    "FitSettings",
    "GoldenMismatchError",
    "HeadsPosterior",
    "InvalidInputError",
    "LabelTokenError",
    "LaploraError",
    "LaploraWarning",
    "Manifest",
    "Measured",
    "ModelError",
    "NonFiniteError",
    "Posterior",
    "PosteriorPredictive",
    "Prediction",
    "Predictor",
    "Prior",
    "PriorChoice",
    "PriorError",
    "PromptTemplate",
    "StateTape",
    "States",
    "StoreUnreachableError",
    "StructureSettings",
    "TooManyTokensError",
    "Uncertainty",
    "UpstreamAnswerError",
    "UpstreamChangedError",
    "UpstreamError",
    "UpstreamRefusedError",
    "UpstreamUnavailableError",
    "Workers",
    "__version__",
    "accept_threshold",
    "block_precisions",
    "choose_by_evidence",
    "choose_by_validation",
    "condition",
    "conformal_threshold",
    "contrast_jacobians",
    "cross_fitted",
    "decompose",
    "empirical_coverage",
    "error_auprc",
    "error_auroc",
    "evaluate_probs",
    "find_blocks",
    "fit",
    "fit_posterior",
    "fit_temperature",
    "load",
    "posterior_predictive",
    "prediction_sets",
    "predictive_probs",
    "read_artifact",
    "remote_model",
    "restore_packaged",
    "risk_coverage",
    "select_blocks",
    "temperature_probs",
]

#: The modules of the names that cost an import.
_HOMES = {
    "classifier": ("Classifier",),
    "fitting.calibrated": ("CalibratedPosterior",),
    "fitting.entry": ("fit",),
    "fitting.evaluation": ("Measured",),
    "fitting.heads": ("HeadsPosterior",),
    "fitting.loaded": ("condition", "load"),
    "settings": ("FitSettings",),
    "artifact.folder": ("Artifact", "read_artifact"),
    "artifact.packaged": ("restore_packaged",),
    "decisions.conformal": (
        "conformal_threshold",
        "empirical_coverage",
        "prediction_sets",
    ),
    "decisions.temperature": ("fit_temperature", "temperature_probs"),
    "predictive.cross_fitting": ("cross_fitted",),
    "jacobians.contrasts": ("contrast_jacobians", "find_blocks"),
    "artifact.manifest": ("Manifest",),
    "metrics.scores": ("Evaluation", "evaluate_probs"),
    "posterior.base": ("Posterior", "Prior", "block_precisions"),
    "linearised": ("PosteriorPredictive",),
    "predictive.gaussian": ("posterior_predictive",),
    "predictive.kinds": ("PREDICTIVES",),
    "predictive.probs": ("predictive_probs",),
    "answers.comparison": ("Comparison",),
    "answers.prediction": ("Prediction",),
    "predictor": ("Predictor",),
    "prior.evidence": ("choose_by_evidence",),
    "prior.search": ("PriorChoice", "choose_by_validation"),
    "prompts.rows": ("EncodedRow",),
    "prompts.templates": ("TEMPLATES", "PromptTemplate"),
    "metrics.ranking": ("error_auprc", "error_auroc", "risk_coverage"),
    "decisions.review": ("accept_threshold",),
    "jacobians.states": ("StateTape", "States"),
    "posterior.passes": ("StructureSettings",),
    "posterior.structures": ("STRUCTURES", "fit_posterior"),
    "posterior.subset": ("select_blocks",),
    "decisions.thresholds": ("FLAGS",),
    "decisions.uncertainty": ("Uncertainty", "decompose"),
    "execution.workers": ("Workers",),
    "upstream.remote_model": ("remote_model",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"laplora.{module}"), name)
            return value
    raise AttributeError(f"module 'laplora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
