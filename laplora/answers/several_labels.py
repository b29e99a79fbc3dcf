"""Answers where several labels of a row may be right: a probability for each label, and one decision for the row.

A label's probability, its conformal threshold and its review score are those of a question of its own
(``laplora.predictive.binary_rows``). In a ``Prediction``

- ``probs``, ``map_probs``, ``probs_std``, ``calibrated_probs`` are by label of its presence, and do not sum to 1,
- ``logit_mean``, ``logit_variance``, ``logit_covariance`` are of the labels' logits themselves, not centred,
- ``total``, ``aleatoric`` and ``epistemic`` are sums over the labels,
- ``prediction_set`` has the labels that cannot be ruled out: a right label is in it with about the stated probability.
  An unfamiliar row has them all,
- ``score`` is the largest of the labels' review scores, so that a row goes to review if any label does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from laplora.answers.prediction import LabelArrays, PosteriorSpread, Prediction, mixtures
from laplora.artifact.manifest import Manifest
from laplora.decisions.conformal import present_sets
from laplora.decisions.uncertainty import decide, decompose, raise_flags, review_score, ruled
from laplora.experts.adapter import by_label, of_rows
from laplora.experts.answering import at_mode
from laplora.linearised import PosteriorPredictive, class_probs
from laplora.pool.served import HeadAnswers
from laplora.predictive.batch_outputs import BatchOutputs
from laplora.predictive.binary_rows import binary_outputs
from laplora.predictive.kinds import PredictiveName, has_jacobians
from laplora.prompts.rows import EncodedRow


def build_several(
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
        outputs: of the labels' logits, as the model gives them; heads, covariance: as of ``build_predictions``.
    """
    labels, record = manifest.labels, manifest.predictives[name]
    binary, spread = binary_outputs(outputs), has_jacobians(name)
    computed: dict[Any, PosteriorPredictive] = {**mixtures(manifest, binary)}
    logits, variances = outputs.logits, None
    if heads is not None:
        computed |= {one: of_rows(logs, "bernoulli") for one, logs in heads.log_probs.items()}
        logits = heads.log_probs.get(name, logits)
        if heads.served is not None:
            computed[name], spread, variances = by_label(at_mode(heads.served)), True, heads.served.variance.numpy()
    served, shape = computed[name], (len(rows), len(labels))
    split = decompose(served)
    map_probs = class_probs(binary.logits, binary.class_mask)
    scores = {
        other: review_score(manifest.predictives[other].thresholds, probs=predictive.probs, map_probs=map_probs)
        .view(shape)
        .amax(1)
        for other, predictive in computed.items()
    }
    held = present_sets(manifest.calibration.conformal, served.probs, record.conformal).view(shape)
    unfamiliar = manifest.unfamiliar(outputs.familiarity)
    if unfamiliar is not None:
        held = held | unfamiliar[:, None]
    probs = {other: predictive.probs[:, 1].reshape(shape) for other, predictive in computed.items()}
    mine = probs[name]
    present = mine > 0.5
    total, aleatoric, epistemic = (part.view(shape).sum(1) for part in (split.total, split.aleatoric, split.epistemic))
    parted = (spread & ((aleatoric > 0) | (total == 0))).tolist()
    flags = raise_flags(
        record.thresholds,
        unsure=ruled(record.thresholds.review, scores[name], mine, labels, torch.ones_like(mine)).unsure,
        label_mass=outputs.label_mass,
        set_sizes=1 + (held != present).any(1).long(),  # 1 is a set that is not ambiguous
        truncated=[row.truncated for row in rows],
        epistemic=epistemic if spread else None,
        unfamiliar=unfamiliar,
    )
    decisions = decide(flags)
    others = [other for other in computed if other not in ("map", name)]
    covariances = None if outputs.covariance is None else outputs.covariance.numpy()
    if variances is None and covariances is not None:
        variances = covariances.diagonal(axis1=1, axis2=2).clip(0)
    stds, at_map = (values[:, 1].reshape(shape).numpy() for values in (served.std, map_probs))
    spreads: list[PosteriorSpread | None] = [None] * len(rows)
    if not spread and "laplace" in computed:
        beside = computed["laplace"]
        parts = decompose(beside)
        sums = (part.view(shape).sum(1).tolist() for part in (parts.aleatoric, parts.epistemic))
        spreads = list(map(PosteriorSpread, beside.std[:, 1].reshape(shape).numpy(), *sums))
    by_name = {other: values.numpy() for other, values in probs.items()}
    return [
        Prediction(
            predictive=name,
            labels=labels,
            label_index=int(mine[i].argmax()),
            arrays=LabelArrays(
                map_probs=at_map[i],
                probs=by_name[name][i],
                probs_std=stds[i] if spread else None,
                calibrated_probs={other: by_name[other][i] for other in others},
            ),
            logit_mean=logits[i].numpy(),
            logit_variance=None if variances is None else variances[i],
            logit_covariance=covariances[i] if covariance and covariances is not None else None,
            total=float(total[i]),
            aleatoric=float(aleatoric[i]) if parted[i] else None,
            epistemic=float(epistemic[i]) if parted[i] else None,
            label_mass=None if outputs.label_mass is None else float(outputs.label_mass[i]),
            familiarity=None if outputs.familiarity is None else float(outputs.familiarity[i]),
            score=float(scores[name][i]),
            prediction_set=_named(labels, held[i]),
            flags=list(flags[i]),
            decision=decisions[i],
            rule=record.thresholds.review,
            calibrated_scores={other: float(scores[other][i]) for other in others},
            tokens=len(row.token_ids),
            truncated=row.truncated,
            labels_present=_named(labels, present[i]),
            posterior=spreads[i],
        )
        for i, row in enumerate(rows)
    ]


def _named(labels: Sequence[str], chosen: torch.Tensor) -> list[str]:
    return [label for label, held in zip(labels, chosen.tolist(), strict=True) if held]
