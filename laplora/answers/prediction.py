"""From a model's outputs for a batch to its answers: probabilities, uncertainty, flags, sets and decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from laplora.answers.expected_label import ExpectedLabel, expected_labels, root_of
from laplora.answers.written import written_answer
from laplora.artifact.manifest import CalibrationRecord, Manifest, PredictiveRecord
from laplora.decisions.conformal import label_sets
from laplora.decisions.thresholds import FLAGS, Decision, Flag, PredictiveThresholds, ReviewRule
from laplora.decisions.uncertainty import decide, decompose, raise_flags, review_score, ruled
from laplora.experts.adapter import point
from laplora.experts.answering import at_mode
from laplora.linearised import PosteriorPredictive, class_probs, contrasts
from laplora.pool.served import HeadAnswers
from laplora.predictive.batch_outputs import BatchOutputs
from laplora.predictive.kinds import PREDICTIVES, PredictiveName, has_jacobians
from laplora.predictive.probs import predictive_probs
from laplora.prompts.rows import EncodedRow

#: Numbers of an array that Python adds faster than numpy.
_FEW = 64
#: float64; with thousands of labels lists of Python's numbers would be four times as large.
Array = np.ndarray[Any, np.dtype[np.float64]]


class _Compared:
    """Is equal to one of equal fields, arrays among them."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and _same(vars(self), vars(other))

    __hash__ = None  # type: ignore[assignment]  # arrays have none


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    return bool(one == other)


@dataclass(frozen=True, eq=False)
class LabelArrays(_Compared):
    """The arrays of an answer by label, each (classes,) float64 in label order; ``Prediction`` says what they are."""

    map_probs: Array | None
    probs: Array
    probs_std: Array | None
    calibrated_probs: dict[str, Array]


@dataclass(frozen=True, eq=False)
class PosteriorSpread(_Compared):
    """The spread of ``laplace``: ``std`` (classes,) of each probability over the weights; its entropy's parts, nats."""

    std: Array
    aleatoric: float
    epistemic: float


@dataclass(frozen=True, eq=False)
class Prediction(_Compared):
    """The answer to one row, over its possible labels. As over HTTP, ``probs``, ``map_probs``, ``probs_std`` and
    ``calibrated_probs`` are by label; ``arrays`` has the same in label order.

    Attributes:
        predictive: name of the predictive that made ``probs`` and all that follows from them.
        labels: the row's, in order; label_index: of the most probable one under ``probs``; of costs, of the one of
            least expected cost.
        arrays: ``map_probs``, the softmax of the logits at the trained weights, of a model as it is that of the labels'
            tokens, or None where it has no answer; ``probs``, the predictive's mean; ``probs_std``, the standard
            deviation of each probability over the weights, None where the predictive has no covariance; and by name
            ``calibrated_probs``, of the other predictives that need no further pass, except ``map``.
        logit_mean: (classes,) centred logits at the trained weights, or of the head that answers, nats.
        logit_variance: (classes,), of the centred logits under the posterior of the trained adapter, or of the head
            that answers, nats squared; None without one.
        logit_covariance: (classes, classes), likewise; None unless it was asked for.
        total, aleatoric, epistemic: nats; total is the entropy of ``probs``, of which the others are parts. They are
            None without a covariance, and where a head's posterior disagrees more than its answer's entropy allows.
        label_mass: probability of the possible labels under the full-vocabulary softmax; None of heads on a model as it
            is, which answer nothing but labels.
        score: what the predictive's review rule compares, nats.
        familiarity: how like the training rows it is: the share of the calibration rows at least as far from them,
            the row itself counted in, so from 1 / (rows + 1) to 1; None where the artifact has no familiarity.
        flags: see ``laplora.decisions.thresholds.FLAGS``.
        rule: what the score was compared with.
        calibrated_scores: by the names of ``calibrated_probs``, their review scores, nats.
        tokens: of the prompt; truncated: whether it was cut.
        labels_present: where several labels may be right, those of probability above 0.5; None where one is
            (``laplora.answers.several_labels`` says what the other attributes are then).
        posterior: the spread of the posterior, where the predictive has none and the posterior was looked at.
        expected: of labels that have an order, the place that is expected; None of others.
        expected_cost: of the label, where mistakes have costs (``laplora.decisions.costs``); else None.
    """

    predictive: str
    labels: tuple[str, ...]
    label_index: int
    arrays: LabelArrays
    logit_mean: Array
    logit_variance: Array | None
    logit_covariance: Array | None
    total: float
    aleatoric: float | None
    epistemic: float | None
    label_mass: float | None
    familiarity: float | None
    score: float
    prediction_set: list[str]
    flags: list[Flag]
    decision: Decision
    rule: ReviewRule
    calibrated_scores: dict[str, float]
    tokens: int
    truncated: bool
    labels_present: list[str] | None = None
    posterior: PosteriorSpread | None = None
    expected: ExpectedLabel | None = None
    expected_cost: float | None = None

    @property
    def label(self) -> str:
        """The most probable label under ``probs``; of costs, the one of least expected cost."""
        return self.labels[self.label_index]

    @property
    def stated_risk(self) -> float:
        """The error rate that its decision is made for; of costs, the probability that the label is wrong."""
        return self.rule.target_risk if self.expected_cost is None else 1 - float(self.arrays.probs[self.label_index])

    @property
    def decision_reason(self) -> str:
        """Why it has its decision, in one sentence with figures; NonFiniteError where one is not finite."""
        return str(written_answer(self, {})["decision_reason"])

    @property
    def confidence(self) -> float:
        """The largest probability; where several labels may be right, the least sure one's, of present or absent."""
        probs = self.arrays.probs
        return float(probs.max() if self.labels_present is None else np.maximum(probs, 1 - probs).min())

    @property
    def map_probs(self) -> dict[str, float] | None:
        """By label, the softmax of the logits at the trained weights; None where the model has no answer."""
        return None if self.arrays.map_probs is None else self._by_label(self.arrays.map_probs)

    @property
    def probs(self) -> dict[str, float]:
        """By label, the predictive's mean."""
        return self._by_label(self.arrays.probs)

    @property
    def probs_std(self) -> dict[str, float] | None:
        """By label, the standard deviation over the weights; None where the predictive has no covariance."""
        return None if self.arrays.probs_std is None else self._by_label(self.arrays.probs_std)

    @property
    def calibrated_probs(self) -> dict[str, dict[str, float]]:
        """By predictive and label, of the other predictives that needed no further pass."""
        return {name: self._by_label(probs) for name, probs in self.arrays.calibrated_probs.items()}

    @property
    def finite(self) -> bool:
        """Whether every number in it is."""
        arrays = self.arrays
        of = self.posterior
        beside, parts = (None, ()) if of is None else (of.std, (of.aleatoric, of.epistemic))
        within = (arrays.map_probs, arrays.probs, arrays.probs_std, beside, *arrays.calibrated_probs.values())
        logits = (self.logit_mean, self.logit_variance, self.logit_covariance)
        single = (self.total, self.aleatoric, self.epistemic, self.label_mass, self.familiarity, self.score, *parts)
        # One that is not makes the sum so. numpy's takes some microseconds, however little there is to add.
        arrays_there = [one for one in (*within, *logits) if one is not None]
        of_arrays = sum(sum(one.tolist()) if one.ndim == 1 and one.size <= _FEW else one.sum() for one in arrays_there)
        expected = () if self.expected is None else (self.expected.place, self.expected.std)
        return math.isfinite(
            of_arrays + sum(one for one in (*single, *expected, self.expected_cost) if one is not None)
        )

    def reviewed(self, flag: Flag) -> Prediction:
        """Return the answer with a further flag, for review."""
        return replace(self, flags=[*self.flags, flag], decision="review")

    def _by_label(self, values: Array) -> dict[str, float]:
        return dict(zip(self.labels, values.tolist(), strict=True))


class Rules(Protocol):
    """The rules that turn probabilities into answers; a manifest is one."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in order."""

    @property
    def predictives(self) -> Mapping[Any, PredictiveRecord]:
        """Thresholds by the name of what answers."""

    @property
    def calibration(self) -> CalibrationRecord:
        """The calibration that the thresholds are from."""

    def unfamiliar(self, familiarity: torch.Tensor | None) -> torch.Tensor | None:
        """Return (batch,) bool which rows get the flag; None where nobody measured it."""


def mixtures(manifest: Manifest, outputs: BatchOutputs) -> dict[PredictiveName, PosteriorPredictive]:
    """Return the moments of every predictive of the artifact that the outputs are enough for."""
    if outputs.mean is None:
        return {}
    wanted = (n for n in PREDICTIVES if n in manifest.predictives)
    return {
        name: predictive_probs(
            outputs.mean,
            outputs.covariance if has_jacobians(name) else None,
            outputs.class_mask,
            manifest.predictives[name].temperature,
        )
        for name in wanted
        if outputs.covariance is not None or not has_jacobians(name)
    }


def build_predictions(
    manifest: Manifest,
    rows: Sequence[EncodedRow],
    outputs: BatchOutputs,
    name: PredictiveName,
    heads: HeadAnswers | None = None,
    *,
    covariance: bool = False,
) -> list[Prediction]:
    """Return the answers of one predictive that the outputs are enough for, in row order.

    Args:
        heads: what heads say of the batch; None without any.
        covariance: whether they have ``logit_covariance``, where the outputs do.
    """
    computed: dict[Any, PosteriorPredictive] = {**mixtures(manifest, outputs)}
    map_probs = class_probs(outputs.logits, outputs.class_mask) if "map" in manifest.predictives else None
    spread, variance = has_jacobians(name), None
    if heads is not None:
        computed |= {one: point(log_probs) for one, log_probs in heads.log_probs.items()}
        if name in heads.log_probs:
            outputs = replace(outputs, logits=heads.log_probs[name])
        if heads.served is not None:
            computed[name], spread, variance = at_mode(heads.served), True, heads.served.variance
        if not manifest.has_adapter and map_probs is not None:
            computed["map"] = point(map_probs.log())
    found = answers_of(manifest, rows, outputs, computed, name, map_probs, spread=spread, covariance=covariance)
    if variance is not None:
        found = [replace(one, logit_variance=variance[i, : len(one.labels)].numpy()) for i, one in enumerate(found)]
    if not manifest.calibration.ordered:
        return found
    probs = torch.from_numpy(np.stack([one.arrays.probs for one in found]))
    root = root_of(outputs.covariance if has_jacobians(name) else None, variance)
    each = expected_labels(probs, outputs.logits, root)
    return [replace(one, expected=expected) for one, expected in zip(found, each, strict=True)]


def answers_of(
    rules: Rules,
    rows: Sequence[EncodedRow],
    outputs: BatchOutputs,
    computed: Mapping[Any, PosteriorPredictive],
    name: str,
    map_probs: torch.Tensor | None,
    *,
    spread: bool,
    covariance: bool = False,
) -> list[Prediction]:
    """Return the answers by one of some predictives, in row order.

    Args:
        computed: by name the moments of the rows' probabilities.
        map_probs: (batch, classes), the model's own; None where it has no answer.
        spread: whether the answering one has a spread. One without is one set of weights: nothing of it is epistemic.
        covariance: as of ``build_predictions``.
    """
    served = computed[name]
    probs = map_probs if name == "map" and map_probs is not None else served.probs
    split = decompose(served)
    scores = {
        other: review_score(rules.predictives[other].thresholds, probs=predictive.probs, map_probs=map_probs)
        for other, predictive in computed.items()
    }
    record, unfamiliar = rules.predictives[name], rules.unfamiliar(outputs.familiarity)
    held = label_sets(rules.calibration.conformal, probs, record.conformal, outputs.class_mask)
    if unfamiliar is not None:  # no calibration row says which label to leave out
        held = torch.where(unfamiliar[:, None], outputs.class_mask.cpu(), held)
    rule = record.thresholds.review
    of = ruled(rule, scores[name], probs, rules.labels, outputs.class_mask)
    flags = raise_flags(
        record.thresholds,
        unsure=of.unsure,
        label_mass=outputs.label_mass,
        set_sizes=held.sum(1),
        truncated=[row.truncated for row in rows],
        epistemic=split.epistemic if spread else None,
        unfamiliar=unfamiliar,
    )
    decisions = decide(flags)
    others = [other for other in computed if other not in ("map", name)]
    counts = [row.class_count for row in rows]
    variances, covariances = _centred(outputs.covariance, counts, whole=covariance)
    familiar = outputs.familiarity
    # As lists before the loop: a tensor's single elements cost microseconds each, for every row of every batch.
    best, sets, costs = of.answered.tolist(), held.tolist(), of.costs
    mass = [None] * len(rows) if outputs.label_mass is None else outputs.label_mass.tolist()
    total, aleatoric, epistemic = (t.tolist() for t in (split.total, split.aleatoric, split.epistemic))
    parted = [spread and (rest > 0 or not whole) for rest, whole in zip(aleatoric, total, strict=True)]
    mine, stds = probs.numpy(), served.std.numpy()
    at_map = None if map_probs is None else map_probs.numpy()
    logit_mean = _centred_logits(outputs.logits, counts).numpy()
    calibrated = {other: computed[other].probs.numpy() for other in others}
    rankings = {other: score.tolist() for other, score in scores.items()}
    spreads: Sequence[PosteriorSpread | None] = [None] * len(rows)
    if not spread and "laplace" in computed:
        spreads = _spreads(computed["laplace"], counts)
    answers = []
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        labels = rules.labels[:count]
        arrays = LabelArrays(
            map_probs=None if at_map is None else at_map[i, :count],
            probs=mine[i, :count],
            probs_std=stds[i, :count] if spread else None,
            calibrated_probs={other: calibrated[other][i, :count] for other in others},
        )
        answers.append(
            Prediction(
                predictive=name,
                labels=labels,
                label_index=best[i],
                arrays=arrays,
                logit_mean=logit_mean[i, :count],
                logit_variance=variances[i],
                logit_covariance=covariances[i],
                total=total[i],
                aleatoric=aleatoric[i] if parted[i] else None,
                epistemic=epistemic[i] if parted[i] else None,
                label_mass=mass[i],
                familiarity=None if familiar is None else float(familiar[i]),
                score=rankings[name][i],
                prediction_set=[label for label, held in zip(labels, sets[i][:count], strict=True) if held],
                flags=list(flags[i]),
                decision=decisions[i],
                rule=rule.of_label(labels[best[i]]),
                calibrated_scores={other: rankings[other][i] for other in others},
                tokens=len(row.token_ids),
                truncated=row.truncated,
                posterior=spreads[i],
                expected_cost=costs[i],
            )
        )
    return answers


def decided_at(
    predictions: Sequence[Prediction], thresholds: PredictiveThresholds, labels: Sequence[str]
) -> list[Prediction]:
    """Return predictions of one predictive with the decisions that other thresholds give; ``labels``: the artifact's.

    With them go the flag ``low_confidence`` and, of costs, the label.
    """
    if not predictions:
        return []
    counts = torch.tensor([len(p.labels) for p in predictions])
    possible = torch.arange(int(counts.max())) < counts[:, None]
    probs = torch.zeros(possible.shape, dtype=torch.float64)
    for row, p in zip(probs, predictions, strict=True):
        row[: len(p.labels)] = torch.from_numpy(p.arrays.probs)
    score, rule = torch.tensor([p.score for p in predictions], dtype=torch.float64), thresholds.review
    of = ruled(rule, score, probs, labels, possible)
    decided = []
    for p, place, unsure, cost in zip(predictions, of.answered.tolist(), of.unsure.tolist(), of.costs, strict=True):
        flags: list[Flag] = [flag for flag in FLAGS if (unsure if flag == "low_confidence" else flag in p.flags)]
        one = replace(p, label_index=place, expected_cost=cost, flags=flags, decision=decide([flags])[0])
        decided.append(replace(one, rule=rule.of_label(one.label)))
    return decided


def _spreads(laplace: PosteriorPredictive, counts: Sequence[int]) -> Sequence[PosteriorSpread | None]:
    """Return the posterior's spread of each row, over its first ``counts`` labels."""
    split = decompose(laplace)
    stds, parts = laplace.std.numpy(), zip(split.aleatoric.tolist(), split.epistemic.tolist(), strict=True)
    return [PosteriorSpread(std[:count], *of) for std, count, of in zip(stds, counts, parts, strict=True)]


def _centred_logits(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return logits (batch, classes) less the mean of each row's first ``counts``."""
    possible = torch.arange(logits.shape[1]) < torch.tensor(counts)[:, None]
    return logits - logits.masked_fill(~possible, 0).sum(1, keepdim=True) / possible.sum(1, keepdim=True)


def _centred(
    contrast_covariances: torch.Tensor | None, counts: Sequence[int], *, whole: bool
) -> tuple[list[Array | None], list[Array | None]]:
    """Return each row's variances (count,) and, where ``whole``, covariances (count, count) of its logits less their
    mean, over its first ``counts`` labels; None where there are none.

    Args:
        contrast_covariances: (batch, classes - 1, classes - 1).
    """
    variances: list[Array | None] = [None] * len(counts)
    covariances = list(variances)
    if contrast_covariances is None:
        return variances, covariances
    full = contrasts(contrast_covariances.shape[-1] + 1, torch.float64)
    for count in set(counts):
        places = [i for i, other in enumerate(counts) if other == count]
        transform = full[:count] - full[:count].mean(0)
        half = transform @ contrast_covariances[places]
        for i, variance in zip(places, (half * transform).sum(-1).clamp_min(0).numpy(), strict=True):
            variances[i] = variance
        if whole:
            for i, covariance in zip(places, (half @ transform.T).numpy(), strict=True):
                covariances[i] = covariance
    return variances, covariances
