"""Ensembles over a task's seeds, from what each of them predicted: the deep ensemble that a user could train instead.

A member is one seed: its own training rows, initial adapter and order (Lakshminarayanan, Pritzel and Blundell,
arXiv 1612.01474). It costs as many trainings, adapters and forward passes as it has members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from benchmarks.study.compute.alternatives import point_outcome, rows_of
from benchmarks.study.results.predictions import Predictions
from benchmarks.study.results.records import EnsembleScore
from benchmarks.study.results.scores import pooled_means, score_method
from laplora.linearised import entropy
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import row_nll

#: Ensemble -> what each member is on its own.
MEMBERS_OF: Mapping[str, str] = {
    "seeds": "map",
    "seeds_temperature": "temperature",
    "seeds_laplace": "laplace",
}
#: What one model with a posterior gives: the alternative to training several.
_ONE = "laplace"


def seed_ensembles(seeds: Sequence[Predictions], counts: torch.Tensor) -> list[EnsembleScore]:
    """Return the scores of each ensemble over a task's seeds; none for one seed, or without the members' predictions.

    Args:
        seeds: of one task, on the same test rows.
        counts: (resamples, rows) from ``draw_counts``.
    """
    if len(seeds) < 2 or any(not {*MEMBERS_OF.values()} <= set(p.probs) for p in seeds):
        return []
    labels, task = seeds[0].labels, seeds[0].result.task
    alone = {name: _losses(seeds, name) for name in {*MEMBERS_OF.values(), _ONE}}
    result = []
    for method, probs in ensemble_probs(seeds).items():
        member = MEMBERS_OF[method]
        scored = score_method(probs, labels, counts=counts)
        values, mistakes = scored.values, probs.argmax(1) != labels
        each = torch.stack([p.probs[member] for p in seeds])
        # The mutual information between label and member: what the members' own entropies leave of the mixture's.
        disagreement = entropy(each.mean(0)) - torch.stack([entropy(p) for p in each]).mean(0)
        losses = row_nll(probs, labels)
        found = pooled_means(
            {"member": (losses - alone[member])[None], "one": (losses - alone[_ONE])[None]},
            counts,
        )
        assert values["nll"] is not None
        assert values["ece"] is not None
        assert values["accuracy"] is not None
        assert values["brier"] is not None  # only rankings by pairs can lack a value
        result.append(
            EnsembleScore(
                task=task,
                method=method,
                seeds=len(seeds),
                rows=len(labels),
                nll=values["nll"],
                ece=values["ece"],
                accuracy=values["accuracy"],
                brier=values["brier"],
                auroc_error=values["auroc_error"],
                auroc_disagreement=error_auroc(disagreement, mistakes),
                member_nll=float(alone[member].mean()),
                member_auroc=_mean_auroc(seeds, member),
                against_member=(found["member"].value, found["member"].low, found["member"].high),
                against_laplace=(found["one"].value, found["one"].low, found["one"].high),
            )
        )
    return result


def ensemble_probs(seeds: Sequence[Predictions]) -> dict[str, torch.Tensor]:
    """Return each ensemble's probabilities, (rows, classes) float64.

    One temperature for the whole average, fitted on the calibration rows, where all seeds have the same ones: averaging
    first and calibrating then is what helps (Rahaman and Thiery, arXiv 2007.08792). Without the members' logits there
    is no such ensemble.
    """
    result = {m: torch.stack([p.probs[MEMBERS_OF[m]] for p in seeds]).mean(0) for m in ("seeds", "seeds_laplace")}
    found = [p.logits for p in seeds if p.logits is not None]
    if len(found) == len(seeds):
        first = found[0].calibration
        shared = all(
            torch.equal(f.calibration.labels, first.labels) and torch.equal(f.calibration.class_mask, first.class_mask)
            for f in found
        )
        if shared:
            calibration = rows_of([f.calibration.logits for f in found], first.class_mask, first.labels)
            test = rows_of([f.test.logits for f in found], seeds[0].class_mask, seeds[0].labels)
            result["seeds_temperature"] = point_outcome(calibration, test, tempered=True).test.probs
    return {m: result[m] for m in MEMBERS_OF if m in result}


def _losses(seeds: Sequence[Predictions], method: str) -> torch.Tensor:
    """Return (rows,) the members' mean NLL of each row."""
    return torch.stack([row_nll(p.probs[method], p.labels) for p in seeds]).mean(0)


def _mean_auroc(seeds: Sequence[Predictions], method: str) -> float | None:
    each = [error_auroc(entropy(p.probs[method]), p.probs[method].argmax(1) != p.labels) for p in seeds]
    found = [a for a in each if a is not None]
    return fmean(found) if found else None
