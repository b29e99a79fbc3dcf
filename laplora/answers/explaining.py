"""Why a predictive accepts nothing, in words."""

from __future__ import annotations

from dataclasses import dataclass

from laplora.answers.review_scores import ReviewScores, read_scores, thresholds_at
from laplora.artifact.folder import Artifact
from laplora.artifact.manifest import SCORES
from laplora.decisions.review import least_risk
from laplora.decisions.thresholds import PredictiveThresholds
from laplora.decisions.wanted import Wanted
from laplora.predictive.kinds import PredictiveName


@dataclass(frozen=True)
class NothingAccepted:
    """That a predictive accepts nothing at a target risk, and so every answer goes to review.

    Attributes:
        message: says so.
        accepts_from: the next target risk at which it would accept something, 0 to 1; None where there is none.
    """

    message: str
    accepts_from: float | None


def nothing_accepted(name: str, thresholds: PredictiveThresholds, scores: ReviewScores) -> NothingAccepted | None:
    """Return what is to be said of a predictive without a review threshold; None where it has one.

    Args:
        thresholds: for the target risk that counts; scores: of the calibration rows, by the predictive.
    """
    rule = thresholds.review
    if rule.threshold is not None or rule.costs is not None:
        return None
    if rule.by_label is not None:
        return NothingAccepted(f"{name} accepts no label at its error rate: every answer goes to review", None)
    options = {} if rule.confidence is None else {"confidence": rule.confidence}
    least = least_risk(scores.score, scores.error, above=rule.target_risk, guarantee=rule.guarantee, **options)
    rest = "Nor would it at a higher one" if least is None else f"At {100 * least:.4g} % it would accept some"
    risk = f"{100 * rule.target_risk:.4g} %"
    return NothingAccepted(
        f"{name} accepts nothing at an error rate of {risk}: every answer goes to review. {rest}", least
    )


def nothing_accepted_of(
    artifact: Artifact, name: PredictiveName, wanted: Wanted | None = None
) -> NothingAccepted | None:
    """Return the same of an artifact's predictive, its scores read from its folder; None is what it states itself.

    Raises:
        ArtifactCorruptError: as ``read_scores``.
    """
    manifest = artifact.manifest
    thresholds = manifest.predictives[name].thresholds
    if wanted is None and thresholds.review.threshold is not None:
        return None
    scores = read_scores(artifact.path / SCORES, manifest.servable, manifest.calibration.rows)[name]
    if wanted is not None:
        thresholds = thresholds_at(thresholds, scores, wanted, manifest.labels)
    return nothing_accepted(name, thresholds, scores)
