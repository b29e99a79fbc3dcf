"""The figures of labelled predictions where several labels may be right. Pure.

Each label of an input is a question of its own, of whether it is present, and the figures are over all of them. Labels
of an input err together, so chance is reckoned by input: what has no limit that holds then has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from laplora.linearised import entropy
from laplora.metrics.noise import calibrated_ece, highest_risk
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import row_nll
from laplora.metrics.several_labels import binary_probs, evaluate_labels
from service.feedback.limits import CHANCE, NORMAL, standard_error, watched, watched_gain
from service.feedback.records import Kept, Reference
from service.http.schemas.evaluate import LabelMetrics
from service.http.schemas.feedback import FiguresOut


def measure_several(
    labelled: Sequence[tuple[Kept, int]], reference: Reference
) -> tuple[FiguresOut, dict[str, LabelMetrics]]:
    """Return the figures of labelled predictions, at least one, given with the labels that were told, and each label's.

    Args:
        labelled: bit k is set where label k is right.
    """
    names = labelled[0][0].labels
    each, inputs = len(names), len(labelled)
    tables = zip(*(kept.probabilities() for kept, _ in labelled), strict=True)
    map_probs, probs = (binary_probs(torch.tensor(table, dtype=torch.float64)) for table in tables)
    right = _bits([told for _, told in labelled], each)
    held = _bits([kept.prediction_set for kept, _ in labelled], each)
    labels = right.flatten().long()
    wrong = (probs.argmax(1) != labels).view(inputs, each)
    accepted = torch.tensor([kept.accepted for kept, _ in labelled])
    risks = [kept.target_risk for kept, _ in labelled if kept.accepted]

    def by_input(table: torch.Tensor) -> torch.Tensor:
        return row_nll(table, labels).view(inputs, each).mean(1)

    losses, map_losses = by_input(probs), by_input(map_probs)
    noise = standard_error(losses)
    map_wrong = (map_probs.argmax(1) != labels).view(inputs, each).any(1)
    nll_limit = None
    if reference.nll is not None and reference.rows and noise is not None:
        nll_limit = reference.nll + NORMAL * noise * math.sqrt(1 + inputs / reference.rows)
    risk = math.fsum(risks) / len(risks) if risks else None
    # The share of an input's labels that are wrong varies less than one answer of the same risk: the limit is too high,
    # if anything.
    risk_limit = None if risk is None else highest_risk(risk, len(risks), chance=CHANCE)
    scores = entropy(map_probs if reference.ranked_by_map else probs)
    whole, quality = evaluate_labels(probs, labels, scores, together=each, resamples=0)
    rights = int(right.sum())
    figures = FiguresOut(
        accuracy=watched(whole.accuracy, None, reference.accuracy),
        nll=watched(whole.nll, nll_limit, reference.nll),
        ece=watched(whole.ece, None, reference.ece),
        ece_expected=calibrated_ece(probs.amax(1), chance=CHANCE).mean,
        brier=watched(whole.brier, None, reference.brier),
        auroc_error=watched(error_auroc(scores, wrong.flatten()), None, reference.auroc_error),
        coverage=watched(int((held & right).sum()) / rights if rights else None, None, reference.coverage),
        accepted=len(risks),
        accepted_risk=watched(float(wrong[accepted].double().mean()) if risks else None, risk_limit, risk),
        map_nll=float(map_losses.mean()),
        map_gain=watched_gain(map_losses - losses, int(map_wrong.sum())),
    )
    by_label = quality.to_json(names)["labels"]
    return figures, {name: LabelMetrics.model_validate(metrics) for name, metrics in by_label.items()}


def any_wrong(kept: Kept, told: int) -> bool:
    """Return whether a label of a prediction is wrong: said to be present, above 0.5, and not right, or the reverse."""
    _, probs = kept.probabilities()
    return sum(1 << k for k, p in enumerate(probs) if p > 0.5) != told


def _bits(sets: Sequence[int], count: int) -> torch.Tensor:
    """Return (rows, count) bool, which bits are set."""
    return torch.tensor([[bool(one >> k & 1) for k in range(count)] for one in sets])
