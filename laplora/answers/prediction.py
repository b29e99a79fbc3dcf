"""From a model's outputs for a batch to its answers: probabilities, uncertainty, flags, sets and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.artifact.manifest import Manifest
from laplora.decisions.conformal import label_sets
from laplora.decisions.thresholds import Decision, Flag
from laplora.decisions.uncertainty import decide, decompose, raise_flags, review_score
from laplora.linearised import PosteriorPredictive, class_probs, contrasts
from laplora.predictive.batch_outputs import BatchOutputs
from laplora.predictive.kinds import PredictiveName, predictive_probs
from laplora.prompts.rows import EncodedRow


@dataclass(frozen=True)
class Prediction:
    """The answer to one row; every list has one entry per possible label of the row, in label order.

    Attributes:
        predictive: name of the predictive that made ``probs`` and all that follows from them.
        label_index: of the most probable label under ``probs``.
        map_probs: softmax of the logits at the trained weights.
        probs: the predictive's mean.
        probs_std: standard deviation of each probability over the weights. Like ``aleatoric`` and ``epistemic`` it is
            None where the predictive has one set of weights only (``map``, ``temperature``).
        logit_mean: centred logits at the trained weights, nats.
        logit_variance: of the centred logits under the trained adapter's posterior, nats squared; None without one.
        total, aleatoric, epistemic: nats; total is the entropy of ``probs``.
        label_mass: probability of the possible labels under the full-vocabulary softmax.
        score: what the predictive's review rule compares, nats.
        familiarity: how like the training rows it is: the share of the calibration rows that are at least as strange,
            the row itself counted in, so from 1 / (rows + 1) to 1; None where the artifact has no familiarity.
        flags: see ``laplora.decisions.uncertainty.FLAGS``.
        calibrated_probs: by name, of the other predictives that need no further pass, except ``map``.
        calibrated_scores: by the same names, their review scores, nats.
        tokens: of the prompt, or of the prompts of both orders; truncated: whether one was cut.
        orders: 2 where the answer is averaged over two orders of the options (``laplora.answers.order_answers``).
        order_information: nats, mutual information of label and order: the part of ``epistemic`` that is disagreement
            of the orders; None for one order.
        labels_present: where several labels may be right, those of probability above 0.5; None where one is
            (``laplora.answers.several_labels`` says what the other attributes are then).
    """

    predictive: PredictiveName
    labels: tuple[str, ...]
    label_index: int
    map_probs: list[float]
    probs: list[float]
    probs_std: list[float] | None
    logit_mean: list[float]
    logit_variance: list[float] | None
    logit_covariance: list[list[float]] | None
    total: float
    aleatoric: float | None
    epistemic: float | None
    label_mass: float
    familiarity: float | None
    score: float
    prediction_set: list[str]
    flags: list[Flag]
    decision: Decision
    calibrated_probs: dict[str, list[float]]
    calibrated_scores: dict[str, float]
    tokens: int
    truncated: bool
    orders: int = 1
    order_information: float | None = None
    labels_present: list[str] | None = None

    @property
    def label(self) -> str:
        """The most probable label under ``probs``."""
        return self.labels[self.label_index]

    @property
    def confidence(self) -> float:
        """The largest probability; where several labels may be right, the least sure one's, of present or absent."""
        return max(self.probs) if self.labels_present is None else min(max(p, 1 - p) for p in self.probs)


@dataclass(frozen=True)
class Verdicts:
    """What a predictive's thresholds give for a batch: ``sets`` is (batch, classes) bool, the conformal sets."""

    sets: torch.Tensor
    flags: list[list[Flag]]
    decisions: list[Decision]


def verdicts(
    manifest: Manifest,
    name: PredictiveName,
    *,
    probs: torch.Tensor,
    class_mask: torch.Tensor,
    label_mass: torch.Tensor,
    truncated: Sequence[bool],
    epistemic: torch.Tensor | None,
    score: torch.Tensor,
    unfamiliar: torch.Tensor | None,
) -> Verdicts:
    """Return sets, flags and decisions by a predictive's thresholds.

    The set of an unfamiliar row holds every label that it can have: no calibration row says what it should leave out.

    Args:
        probs: (batch, classes); class_mask: (batch, classes) bool.
        label_mass: (batch,); truncated: per row.
        epistemic: (batch,) nats, or None; score: (batch,) of ``review_score``; unfamiliar: (batch,) bool, or None.
    """
    record = manifest.predictives[name]
    sets = label_sets(manifest.calibration.conformal, probs, record.conformal, class_mask)
    if unfamiliar is not None:
        sets = torch.where(unfamiliar[:, None], class_mask.cpu(), sets)
    flags = raise_flags(
        record.thresholds,
        score=score,
        label_mass=label_mass,
        set_sizes=sets.sum(1),
        truncated=truncated,
        epistemic=epistemic,
        unfamiliar=unfamiliar,
    )
    return Verdicts(sets, flags, decide(flags))


def mixtures(manifest: Manifest, outputs: BatchOutputs) -> dict[PredictiveName, PosteriorPredictive]:
    """Return the moments of every predictive of the artifact that the outputs are enough for."""
    moments = {}
    for name in manifest.predictives:
        spec = manifest.spec(name)
        covariance = outputs.covariance if spec.covariance else None
        if spec.mean in outputs.means and spec.covariance == (covariance is not None):
            moments[name] = predictive_probs(spec, outputs.means[spec.mean], covariance, outputs.class_mask)
    return moments


def build_predictions(
    manifest: Manifest, rows: Sequence[EncodedRow], outputs: BatchOutputs, name: PredictiveName
) -> list[Prediction]:
    """Return the answers of one predictive that the outputs are enough for, in row order."""
    spec = manifest.spec(name)
    computed = mixtures(manifest, outputs)
    map_probs = class_probs(outputs.logits, outputs.class_mask)
    served = computed[name]
    probs = map_probs if name == "map" else served.probs
    split = decompose(served)
    # Whether it averages over several weights, so that there is something epistemic to it.
    spread = spec.covariance or spec.mean != "plain"
    scores = {
        other: review_score(manifest.predictives[other].thresholds, probs=predictive.probs, map_probs=map_probs)
        for other, predictive in computed.items()
    }
    verdict = verdicts(
        manifest,
        name,
        probs=probs,
        class_mask=outputs.class_mask,
        label_mass=outputs.label_mass,
        truncated=[r.truncated for r in rows],
        epistemic=split.epistemic if spread else None,
        score=scores[name],
        unfamiliar=manifest.unfamiliar(outputs.familiarity),
    )
    others = [other for other in computed if other not in ("map", name)]
    counts = [row.class_count for row in rows]
    centred = None if outputs.covariance is None else _centred(outputs.covariance, counts)
    familiar = outputs.familiarity
    # As lists before the loop: a tensor's single elements cost microseconds each, for every row of every batch.
    best, at_map, mine, stds = (t.tolist() for t in (probs.argmax(1), map_probs, probs, served.std))
    total, aleatoric, epistemic = (t.tolist() for t in (split.total, split.aleatoric, split.epistemic))
    logit_mean, mass = _centred_logits(outputs.logits, counts).tolist(), outputs.label_mass.tolist()
    sets = verdict.sets.tolist()
    calibrated = {other: computed[other].probs.tolist() for other in others}
    rankings = {other: score.tolist() for other, score in scores.items()}
    answers = []
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        labels = manifest.labels[:count]
        covariance = None if centred is None else centred[i]
        answers.append(
            Prediction(
                predictive=name,
                labels=labels,
                label_index=best[i],
                map_probs=at_map[i][:count],
                probs=mine[i][:count],
                probs_std=stds[i][:count] if spread else None,
                logit_mean=logit_mean[i][:count],
                logit_variance=None if covariance is None else [max(0.0, covariance[k][k]) for k in range(count)],
                logit_covariance=covariance,
                total=total[i],
                aleatoric=aleatoric[i] if spread else None,
                epistemic=epistemic[i] if spread else None,
                label_mass=mass[i],
                familiarity=None if familiar is None else float(familiar[i]),
                score=rankings[name][i],
                prediction_set=[label for label, held in zip(labels, sets[i][:count], strict=True) if held],
                flags=list(verdict.flags[i]),
                decision=verdict.decisions[i],
                calibrated_probs={other: calibrated[other][i][:count] for other in others},
                calibrated_scores={other: rankings[other][i] for other in others},
                tokens=len(row.token_ids),
                truncated=row.truncated,
            )
        )
    return answers


def _centred_logits(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return logits (batch, classes) less the mean of each row's first ``counts``."""
    possible = torch.arange(logits.shape[1]) < torch.tensor(counts)[:, None]
    return logits - logits.masked_fill(~possible, 0).sum(1, keepdim=True) / possible.sum(1, keepdim=True)


def _centred(contrast_covariances: torch.Tensor, counts: Sequence[int]) -> list[list[list[float]]]:
    """Return the covariances of each row's first ``counts`` logits less their mean, (count, count) each.

    Args:
        contrast_covariances: (batch, classes - 1, classes - 1).
    """
    full = contrasts(contrast_covariances.shape[-1] + 1, torch.float64)
    found: dict[int, list[list[float]]] = {}
    for count in set(counts):
        places = [i for i, other in enumerate(counts) if other == count]
        transform = full[:count] - full[:count].mean(0)
        found.update(zip(places, (transform @ contrast_covariances[places] @ transform.T).tolist(), strict=True))
    return [found[i] for i in range(len(counts))]
