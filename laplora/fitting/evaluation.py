"""Every predictive of a fit on labelled rows that it has not seen, and what is printed of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from laplora.answers.prediction import Prediction
from laplora.artifact.manifest import PredictiveRecord
from laplora.classifier import Classifier, batches
from laplora.decisions.conformal import ConformalScore, label_sets, present_sets
from laplora.decisions.uncertainty import review_score
from laplora.execution.progress import Progress
from laplora.experts.adapter import by_label, point
from laplora.experts.answering import at_mode
from laplora.experts.base import Outputs
from laplora.familiarity.percentile import Familiarity
from laplora.features.expert_passes import ExpertPasses
from laplora.fitting.adapted_experts import outputs_of_split
from laplora.fitting.calibrate import predictive_of
from laplora.fitting.fit import Fit
from laplora.fitting.projected import Fitted, SplitOutputs, project_split
from laplora.fitting.rows import groups_of
from laplora.linearised import Likelihood, PosteriorPredictive, class_probs, most_probable
from laplora.metrics.label_sets import SetQuality, present_set_quality, set_quality
from laplora.metrics.paired import nll_difference
from laplora.metrics.scores import Evaluation, evaluate_probs, row_scores
from laplora.metrics.several_labels import LabelsQuality, evaluate_labels
from laplora.pool.served import NO_EXPERTS, ServedExperts
from laplora.posterior.base import Posterior, Prior
from laplora.predictive.kinds import PREDICTIVES, PredictiveName
from laplora.predictor import Predictor
from laplora.prompts.examples import Example, label_tensor

#: The column of the model's own answers.
_AT_MAP = "at_map"
#: Rows of a pass.
_BATCH = 8
_COLUMNS = ("accuracy", "nll", "ece", "brier", "auroc_error")


@dataclass(frozen=True)
class RowOutputs:
    """The outputs of a fit on rows.

    Attributes:
        outputs: of the adapter; read: what the fit's heads read; heads: those.
        familiarity: (inputs,), 0 to 1; None without it.
    """

    outputs: SplitOutputs
    read: Outputs
    heads: ServedExperts = NO_EXPERTS
    familiarity: torch.Tensor | None = None

    def predictive(self, name: PredictiveName, temperature: float) -> PosteriorPredictive:
        """Return the moments of a predictive, of rows as those of the split."""
        if name in PREDICTIVES:
            return predictive_of(self.outputs, name, temperature)
        answer, several = self.heads.answered(name, self.read), self.outputs.split.together > 1
        kind: Likelihood = "bernoulli" if several else "categorical"
        given = point(answer.log_probs[name], kind) if answer.served is None else at_mode(answer.served)
        return by_label(given) if several else given


def outputs_of(
    classifier: Classifier,
    batch_size: int,
    posterior: Posterior,
    prior: Prior,
    familiarity: Familiarity | None,
    examples: Sequence[Example],
    progress: Progress,
    title: str = "test rows",
    heads: ServedExperts = NO_EXPERTS,
    passes: ExpertPasses | None = None,
) -> RowOutputs:
    """Return what a fit gives on rows; ``passes``: of the heads that do not look at the adapter."""
    layers, tokens = (familiarity.layers, familiarity.tokens) if familiarity else ((), 1)
    split = project_split(
        classifier, posterior, examples, progress, title, batch_size=batch_size, layers=layers, tokens=tokens
    )
    outputs = SplitOutputs(split, Fitted(posterior, prior, split.projected))
    familiar = None if familiarity is None or split.states is None else familiarity.of(split.states)
    read = outputs_of_split(outputs)
    if passes is not None:
        beside = passes.outputs(examples, progress, title)
        read = replace(read, features={**read.features, **beside.features})
    return RowOutputs(outputs, read, heads, familiar)


def outputs_of_rows(classifier: Classifier, fit: Fit, examples: Sequence[Example], progress: Progress) -> Outputs:
    """Return what all experts of a fit read of inputs."""
    size, posterior, prior = fit.settings.laplace.batch_size, fit.posterior, fit.served.prior
    passes = fit.heads.passes if fit.heads else None
    outputs = outputs_of(classifier, size, posterior, prior, None, examples, progress, "inputs", passes=passes)
    return replace(outputs.read, covariance=outputs_of_split(outputs.outputs, covariance=True).covariance)


@dataclass(frozen=True)
class RowProbs:
    """The probabilities of every predictive on labelled rows, without covariances.

    Attributes:
        probs: by predictive (rows, classes); map_probs: (rows, classes), MAP's; None where a model has no answer.
        labels, class_mask, together: as of ``ProjectedSplit``; groups: (inputs,) int64, its ``input_groups``.
    """

    probs: Mapping[Any, torch.Tensor]
    map_probs: torch.Tensor | None
    labels: torch.Tensor
    class_mask: torch.Tensor
    together: int
    groups: torch.Tensor

    @classmethod
    def of(cls, outputs: RowOutputs, temperatures: Mapping[PredictiveName, float]) -> RowProbs:
        """Return those of a fit's predictives, each with its temperature."""
        split = outputs.outputs.split
        probs = {name: outputs.predictive(name, temperature).probs for name, temperature in temperatures.items()}
        map_probs = class_probs(split.logits, split.class_mask)
        return cls(probs, map_probs, split.labels, split.class_mask, split.together, split.input_groups)


def evaluated(
    predictor: Predictor, classifier: Classifier, examples: Sequence[Example], progress: Progress
) -> Measured:
    """Return every predictive's metrics on labelled rows, which are answered as a server answers them.

    Args:
        classifier: of the predictor's model.
    """
    manifest, classes = predictor.artifact.manifest, predictor.class_count
    encoded = [predictor.encode(example.fields, truncate=True) for example in examples]
    shape, names = (len(examples), classes), predictor.predictives
    columns = {name: np.zeros(shape) for name in (*names, _AT_MAP)}
    familiarity, served = np.zeros(len(examples)), dict[int, Prediction]()
    for index in progress.track(batches(encoded, _BATCH), "test rows"):
        each = predictor.predict_each([encoded[i] for i in index])
        served.update(zip(index, each[predictor.recommended], strict=True))
        for name, answers in each.items():
            for i, answer in zip(index, answers, strict=True):
                columns[name][i, : len(answer.labels)] = answer.arrays.probs
                if answer.arrays.map_probs is not None:
                    columns[_AT_MAP][i, : len(answer.labels)] = answer.arrays.map_probs
                familiarity[i] = math.nan if answer.familiarity is None else answer.familiarity
    several = manifest.likelihood == "bernoulli"
    probs = {name: torch.from_numpy(values) for name, values in columns.items()}
    mask = torch.arange(classes) < torch.tensor([row.class_count for row in encoded])[:, None]
    labels, together = label_tensor(examples, classes), 1
    if several:  # a row for each label, absent and present
        probs = {name: torch.stack([1 - values.flatten(), values.flatten()], 1) for name, values in probs.items()}
        labels, together, mask = labels.flatten(), classes, torch.ones(mask.numel(), 2, dtype=torch.bool)
    at_map = probs.pop(_AT_MAP)
    rows = RowProbs(probs, at_map if "map" in names else None, labels, mask, together, groups_of(classifier, examples))
    unfamiliar = manifest.unfamiliar(None if np.isnan(familiarity).any() else torch.from_numpy(familiarity))
    evaluations, sets, by_label = evaluate_predictives(
        rows, manifest.predictives, manifest.calibration.conformal, unfamiliar
    )
    return Measured(
        evaluations,
        sets,
        predictor.recommended,
        tuple(manifest.labels) if by_label else (),
        by_label,
        None if unfamiliar is None else float(unfamiliar.double().mean()),
        gain_over_temperature(rows, predictor.recommended),
        [served[i] for i in range(len(examples))],
    )


def evaluate_predictives(
    rows: RowProbs,
    predictives: Mapping[Any, PredictiveRecord],
    conformal: ConformalScore,
    unfamiliar: torch.Tensor | None = None,
) -> tuple[dict[str, Evaluation], dict[str, SetQuality], dict[str, LabelsQuality]]:
    """Return the metrics and the quality of the label sets of every predictive.

    Sets are as served: those of inputs that are ``unfamiliar``, (inputs,) bool, hold every possible label. If
    several labels may be right, the rows of the metrics are one for each input and label, and those of each label come
    beside them; else the last is empty.
    """
    evaluations: dict[str, Evaluation] = {}
    sets: dict[str, SetQuality] = {}
    by_label: dict[str, LabelsQuality] = {}
    widened = torch.zeros(len(rows.labels) // rows.together, 1, dtype=torch.bool)
    if unfamiliar is not None:
        widened = unfamiliar[:, None]
    for name, record in predictives.items():
        probs = rows.probs[name]
        scores = review_score(record.thresholds, probs=probs, map_probs=rows.map_probs)
        if rows.together > 1:
            questions = row_scores(probs, rows.labels, scores)
            evaluations[name], by_label[name] = evaluate_labels(
                questions, rows.labels, together=rows.together, groups=rows.groups
            )
            held = present_sets(conformal, probs, record.conformal).view(-1, rows.together) | widened
            sets[name] = present_set_quality(held, rows.labels.view(-1, rows.together) == 1, rows.groups)
        else:
            ordered = conformal == "interval"
            evaluations[name] = evaluate_probs(probs, rows.labels, scores, groups=rows.groups, ordered=ordered)
            held = label_sets(conformal, probs, record.conformal, rows.class_mask) | (widened & rows.class_mask)
            sets[name] = set_quality(held, most_probable(rows.labels), rows.groups)
    return evaluations, sets, by_label


@dataclass(frozen=True)
class Gain:
    """The NLL of one predictive less that of temperature scaling on the same rows; below 0 is a gain.

    Attributes:
        predictive: its name.
        difference: nats, mean over rows.
        low, high: of its 95 % interval, by a bootstrap that draws the same whole groups for both.
    """

    predictive: PredictiveName
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        verdict = "better" if self.high < 0 else "worse" if self.low > 0 else "within noise"
        return (
            f"NLL of {self.predictive} less that of temperature scaling: {self.difference:+.3f} "
            f"(95 % {self.low:+.3f} to {self.high:+.3f}), {verdict}"
        )


def gain_over_temperature(rows: RowProbs, name: PredictiveName) -> Gain | None:
    """Return what one predictive gains; None for temperature scaling itself, and where there is none to compare with.

    Args:
        rows: that neither training nor calibration has seen.
    """
    if name == "temperature" or "temperature" not in rows.probs:
        return None
    groups = rows.groups.repeat_interleave(rows.together)
    gain = nll_difference(rows.probs[name], rows.probs["temperature"], rows.labels, groups=groups)
    return Gain(name, gain.difference, gain.low, gain.high)


@dataclass(frozen=True)
class Measured:
    """Metrics by predictive; ``sets`` are the conformal label sets'. NLL in nats, ECE over 15 bins.

    If several labels may be right, a row of the metrics is one label of an input. Then ``labels`` are their names,
    in order, and ``by_label`` has by predictive the metrics of each; else both are empty. ``unfamiliar`` is the share
    of inputs that are flagged so, and have sets of every label; None where nothing says which. ``gain`` is that of the
    recommended predictive over temperature scaling; None where that is temperature scaling. ``answers`` are that
    predictive's, in order.
    """

    evaluations: Mapping[str, Evaluation]
    sets: Mapping[str, SetQuality]
    recommended: str
    labels: tuple[str, ...] = ()
    by_label: Mapping[str, LabelsQuality] = field(default_factory=dict)
    unfamiliar: float | None = None
    gain: Gain | None = None
    answers: Sequence[Prediction] = field(default=(), repr=False)

    def __getitem__(self, predictive: str) -> Evaluation:
        """Return one predictive's metrics; KeyError where there is none of that name."""
        return self.evaluations[predictive]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, by predictive."""
        values = {name: evaluation.to_json() for name, evaluation in self.evaluations.items()}
        for name, quality in self.sets.items():
            values[name]["sets"] = vars(quality)
        for name, labels in self.by_label.items():
            values[name] |= labels.to_json(self.labels)
        return values

    def __str__(self) -> str:
        """Return a table, the recommended predictive marked, and what that gains over temperature scaling."""
        first = next(iter(self.evaluations.values()))
        columns = (*_COLUMNS, *(name for name in ("kl", "mae", "rps") if getattr(first, name) is not None))
        rows: list[tuple[str, ...]] = [("", *columns, "coverage", "set size")]
        for name, evaluation in self.evaluations.items():
            values = [getattr(evaluation, column) for column in columns]
            values += [self.sets[name].coverage, self.sets[name].mean_size]
            shown = ["-" if value is None else f"{value:.3f}" for value in values]
            rows.append((f"{name} *" if name == self.recommended else name, *shown))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        count = next(iter(self.evaluations.values())).rows
        each = len(self.labels) or 1
        rows_of = f"{count} rows" if each == 1 else f"{count // each} rows, each of {each} labels measured on its own"
        flagged = "" if self.unfamiliar is None else f"; {self.unfamiliar:.1%} unfamiliar"
        below = [f"{rows_of}{flagged}; * answers unless another is named", *([str(self.gain)] if self.gain else [])]
        return "\n".join([*lines, *below])
