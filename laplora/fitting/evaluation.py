"""Every predictive of a fit on labelled rows that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.artifact.manifest import PredictiveRecord
from laplora.classifier import Classifier
from laplora.decisions.conformal import ConformalScore, label_sets, present_sets
from laplora.decisions.uncertainty import review_score
from laplora.familiarity.percentile import Familiarity
from laplora.fitting.calibrate import predictive_of
from laplora.fitting.outputs import Fitted, SplitOutputs, corrected
from laplora.fitting.progress import Progress
from laplora.fitting.projected import project_split
from laplora.fitting.settings import FitSettings
from laplora.linearised import class_probs
from laplora.metrics.label_sets import SetQuality, present_set_quality, set_quality
from laplora.metrics.scores import Evaluation, evaluate_probs
from laplora.metrics.several_labels import LabelsQuality, evaluate_labels
from laplora.posterior.base import Posterior, Prior
from laplora.predictive.kinds import Corrected, PredictiveName
from laplora.predictive.shift import Shift
from laplora.prompts.examples import Example


@dataclass(frozen=True)
class RowOutputs:
    """What a fit gives on rows.

    Attributes:
        familiarity: (inputs,), 0 to 1; None without it.
    """

    outputs: SplitOutputs
    familiarity: torch.Tensor | None


def outputs_of(
    classifier: Classifier,
    settings: FitSettings,
    posterior: Posterior,
    prior: Prior,
    shifts: Mapping[Corrected, Shift],
    familiarity: Familiarity | None,
    examples: Sequence[Example],
    progress: Progress,
    title: str = "test rows",
) -> RowOutputs:
    """Return what a fit gives on rows; ``shifts`` are of the predictives that labels correct."""
    size = settings.laplace.batch_size
    layers = familiarity.layers if familiarity else ()
    split = project_split(classifier, posterior, examples, progress, title, batch_size=size, layers=layers)
    outputs = corrected(SplitOutputs(split, Fitted(posterior, prior, split.projected)), shifts)
    familiar = None if familiarity is None or split.states is None else familiarity.of(split.states)
    return RowOutputs(outputs, familiar)


def evaluate_predictives(
    outputs: SplitOutputs,
    predictives: Mapping[PredictiveName, PredictiveRecord],
    conformal: ConformalScore,
    unfamiliar: torch.Tensor | None = None,
) -> tuple[dict[str, Evaluation], dict[str, SetQuality], dict[str, LabelsQuality]]:
    """Return the metrics and the quality of the label sets of every predictive.

    Sets are as served: those of inputs that are ``unfamiliar``, (inputs,) bool, hold every possible label. Where
    several labels may be right, the rows of the metrics are one for each input and label, and those of each label come
    beside them; else the last is empty.
    """
    split = outputs.split
    evaluations: dict[str, Evaluation] = {}
    sets: dict[str, SetQuality] = {}
    by_label: dict[str, LabelsQuality] = {}
    map_probs = class_probs(split.logits, split.class_mask)
    widened = torch.zeros(len(split.labels) // split.together, 1, dtype=torch.bool)
    if unfamiliar is not None:
        widened = unfamiliar[:, None]
    for name, record in predictives.items():
        probs = predictive_of(outputs, name, record.temperature).probs
        scores = review_score(record.thresholds, probs=probs, map_probs=map_probs)
        if split.together > 1:
            evaluations[name], by_label[name] = evaluate_labels(probs, split.labels, scores, together=split.together)
            held = present_sets(conformal, probs, record.conformal).view(-1, split.together) | widened
            sets[name] = present_set_quality(held, split.labels.view(-1, split.together) == 1)
        else:
            evaluations[name] = evaluate_probs(probs, split.labels, scores)
            held = label_sets(conformal, probs, record.conformal, split.class_mask) | (widened & split.class_mask)
            sets[name] = set_quality(held, split.labels)
    return evaluations, sets, by_label
