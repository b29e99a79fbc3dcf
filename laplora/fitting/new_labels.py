"""Labels that come after an artifact was packaged: how they move its answers, and whether they help.

Every conditioning begins at the artifact as it was packaged, with the labels of all rows given: one that is left out
was never there. Where the calibration rows are given too, they and the new rows condition together. Else they count
through the mean alone, which loses some of what they say (docs/lab-notes.md).

Posterior and prior stay: the new rows had no part in them. Everything else that depends on labels is fitted on the new
rows, and no row answers for itself: temperatures, thresholds, sets, scores and the recommendation come from folds of
them. The calibration rows condition every fold and calibrate nothing: they chose the prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import call
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from laplora.answers.review_scores import ReviewScores
from laplora.artifact.manifest import Manifest
from laplora.classifier import Classifier
from laplora.errors import ConfigError, DataError
from laplora.experts.last_state import LastState
from laplora.fitting.adapted_experts import check_conditioning
from laplora.fitting.calibrate import (
    OUT_OF_FOLD,
    Calibrated,
    calibrate,
    out_of_fold,
    predictive_of,
    prior_without,
    warn_of_nothing_accepted,
)
from laplora.fitting.conditioning import Conditioning, shifts_of, with_held_out
from laplora.fitting.outputs import SplitOutputs
from laplora.fitting.progress import Progress, Silent
from laplora.fitting.projected import ProjectedSplit
from laplora.fitting.reversed_choices import with_reversed
from laplora.fitting.rows import FEW_CALIBRATION_ROWS, check_independent, groups_of, warn_of_conflicts
from laplora.fitting.served_rows import Run, concatenated, served_outputs
from laplora.fitting.settings import FitSettings
from laplora.linearised import PosteriorPredictive
from laplora.metrics.groups import mean_and_error
from laplora.metrics.scores import evaluate_probs, row_nll
from laplora.predictive.kinds import CONDITIONED, Corrected, PredictiveName
from laplora.predictor import Predictor
from laplora.prompts.examples import Example

#: Standard errors by which conditioned answers may be worse than those of the artifact as packaged,
WORSE = 1.0
#: and nats over all rows, what a needless fit of one number costs: where labels move next to nothing, so does chance.
COST = 0.5


class Figures(BaseModel):
    """One predictive on the new rows."""

    model_config = ConfigDict(frozen=True)

    predictive: PredictiveName
    accuracy: float = Field(ge=0, le=1)
    nll: float = Field(description="nats, mean over rows")
    ece: float = Field(ge=0, le=1)
    brier: float = Field(ge=0, le=2)


class Comparison(BaseModel):
    """The artifact on the new rows, before and after: each row answered by the artifact as packaged, and by it
    conditioned on the labels of the other folds.
    """

    model_config = ConfigDict(frozen=True)

    rows: int = Field(ge=1, description="new labelled rows")
    folds: int = Field(ge=2)
    before: Figures = Field(description="of the predictive that the packaged artifact recommends")
    after: Figures = Field(
        description="of conditioned: none is chosen by these rows; each row by the labels of the other folds"
    )
    difference: float = Field(description="of the NLL, after less before, nats, mean over rows")
    standard_error: float = Field(ge=0, description="of the difference, nats")

    @property
    def worse(self) -> bool:
        """Whether the labels make the answers worse beyond what chance does."""
        return self.difference > max(WORSE * self.standard_error, COST / self.rows)

    def __str__(self) -> str:
        """Return the figures in a line."""
        after, before = self.after, self.before
        return (
            f"NLL {after.nll:.3f} by {after.predictive}, {before.nll:.3f} by {before.predictive} before: "
            f"{self.difference:+.3f} (standard error {self.standard_error:.3f}); accuracy {after.accuracy:.3f}, "
            f"{before.accuracy:.3f} before; {self.rows} new rows, each by the labels of the other folds"
        )


@dataclass(frozen=True)
class NewLabels:
    """What new labels make of an artifact.

    Attributes:
        conditioned: by predictive, how they correct it, on top of what the calibration rows' labels do.
        calibrated, scores: as of ``laplora.fitting.calibrate``, on the new rows; split: the rows.
        metrics: by predictive, of the new rows, each answered by what was fitted without it.
    """

    conditioned: Mapping[Corrected, LastState]
    calibrated: Calibrated
    scores: dict[PredictiveName, ReviewScores]
    split: ProjectedSplit
    comparison: Comparison
    metrics: dict[str, Any]


def condition_on(
    packaged: Predictor,
    classifier: Classifier,
    examples: Sequence[Example],
    calibration: Sequence[Example] = (),
    *,
    run: Run = call,
    most_tokens: int | None = None,
    progress: Progress | None = None,
) -> NewLabels:
    """Return what labelled rows make of an artifact.

    Args:
        packaged: the artifact as it was packaged; classifier: its model.
        examples: with labels. Neither training rows nor calibration rows may be among them: the
            artifact has learned from their labels already.
        calibration: the rows that calibrated it, which then condition together with the new ones.
        run: runs each pass through the model, one batch of rows in it; most_tokens: as of ``served_outputs``.

    Raises:
        DataError: too few rows, or all of one group.
        ConfigError: a posterior, or more rows, than conditioning covers.
        FactorizationError, NonFiniteError: rows that no head fits, an answer that is not finite.
    """
    manifest, adapted = packaged.artifact.manifest, packaged.adapted
    if calibration and manifest.calibration.split == OUT_OF_FOLD:
        raise ConfigError("the calibration rows trained the adapter, which knows their labels: give the new rows alone")
    check_count(len(examples))
    warn_of_conflicts(classifier, [*calibration, *examples])
    assert adapted.posterior is not None
    posterior = adapted.posterior.to("cpu", torch.float32)
    settings = settings_of(manifest, posterior.structure)
    check_independent(examples, settings.calibration.guarantee)
    count = len(examples) + len(calibration)
    check_conditioning(classifier, count)
    say = progress or Silent()
    outputs = served_outputs(packaged, classifier, examples, run, say, most_tokens)
    before = predictive_before(outputs, manifest)
    fitted, rows, always = outputs.fitted, outputs.split, 0
    if calibration:
        earlier = served_outputs(packaged, classifier, calibration, run, say, most_tokens).split
        groups = groups_of(classifier, [*calibration, *examples])
        rows, always = replace(concatenated([earlier, rows]), groups=groups), len(earlier)
        fitted = replace(fitted, projected=rows.projected)
    conditioning = Conditioning(fitted, rows, {} if calibration else adapted.shifts, always)
    found = {kind: conditioning.served(kind) for kind in CONDITIONED}
    split, outputs = outputs.split, replace(outputs, shifts=shifts_of(found))
    held_out = out_of_fold(settings, outputs, prior_without(settings, outputs), conditioning)
    calibrated, scores = calibrate(settings, outputs, conditioning, held_out)
    record = calibrated.calibration.model_copy(update={"split": "labels"})
    calibrated = calibrated.model_copy(update={"calibration": record})
    if before_reversed := manifest.predictives.get("temperature"):  # nobody asked the new rows in reverse
        calibrated = with_reversed(calibrated, before_reversed.reversed_temperature)
    name: Corrected = "conditioned"
    comparison = compare(manifest, before, name, held_out[name], split, record.folds)
    by_data, predictives = calibrated.recommended, calibrated.predictives
    limit, of_data = (predictives[one].thresholds.review.threshold for one in (name, by_data.predictive))
    if manifest.recommended.chosen_by != "configuration" and (limit is not None or of_data is None):
        # Who gives labels wants answers that know them: the choice was made by packaging, its correction answers. But
        # one that accepts nothing gives way to one that does.
        update = {"predictive": name, "reason": f"{name}: {comparison}", "chosen_by": "labels"}
        calibrated = calibrated.model_copy(update={"recommended": by_data.model_copy(update=update)})
    warn_of_nothing_accepted(calibrated, scores)
    metrics = {
        str(name): evaluate_probs(one.probs, split.labels, groups=split.row_groups).to_json()
        for name, one in held_out.items()
    }
    found = with_held_out(found, held_out, split)
    return NewLabels(found, calibrated, scores, split, comparison, metrics)


def check_count(rows: int) -> None:
    """Raise DataError for too few new rows."""
    if rows < FEW_CALIBRATION_ROWS:
        raise DataError(
            f"{rows} labelled rows are fewer than {FEW_CALIBRATION_ROWS}: thresholds set on them would be noise; "
            "collect more"
        )


def settings_of(manifest: Manifest, structure: str) -> FitSettings:
    """Return the settings by which an artifact's predictives are calibrated anew, ``conditioned`` among them.

    Raises:
        ConfigError: predictives that no settings give.
    """
    names, rule = manifest.servable, next(iter(manifest.predictives.values())).thresholds.review
    recommended, many = manifest.recommended, manifest.many_classes
    settings = FitSettings.model_validate(
        {
            # Not "validation": the new rows choose no prior.
            "laplace": {"structure": structure, "prior": "evidence"},
            "calibration": {
                "target_risk": rule.target_risk,
                "guarantee": rule.guarantee,
                "coverage": manifest.calibration.coverage,
                "conformal": manifest.calibration.conformal,
                **({} if rule.confidence is None else {"confidence": rule.confidence}),
            },
            "predictives": {
                "temperature": "temperature" in names,
                "serve": recommended.predictive if recommended.chosen_by == "configuration" else "auto",
            },
            "many_classes": {"limit": many.limit if many else max(16, len(manifest.labels))},
        }
    )
    if set(settings.predictives.names) != {*names, *CONDITIONED} - {"laplace_conditioned"}:
        raise ConfigError(f"the artifact has the predictives {list(names)}, which cannot be calibrated together anew")
    return settings


def predictive_before(outputs: SplitOutputs, manifest: Manifest) -> PosteriorPredictive:
    """Return the rows' answers by the packaged artifact, which has seen none of their labels."""
    name = manifest.recommended.predictive
    return predictive_of(outputs, name, manifest.predictives[name].temperature)


def compare(
    manifest: Manifest,
    before: PosteriorPredictive,
    name: PredictiveName,
    after: PosteriorPredictive,
    split: ProjectedSplit,
    folds: int,
) -> Comparison:
    """Return the new rows before and after, the loss of an input with several labels being their sum."""
    each = (row_nll(after.probs, split.labels) - row_nll(before.probs, split.labels)).view(-1, split.together).sum(1)

    def figures(name: PredictiveName, predictive: PosteriorPredictive) -> Figures:
        found = evaluate_probs(predictive.probs, split.labels, resamples=0)
        return Figures(predictive=name, accuracy=found.accuracy, nll=found.nll, ece=found.ece, brier=found.brier)

    difference, error = mean_and_error(each / split.together, split.groups)
    return Comparison(
        rows=len(each),
        folds=folds,
        before=figures(manifest.recommended.predictive, before),
        after=figures(name, after),
        difference=difference,
        standard_error=error,
    )
