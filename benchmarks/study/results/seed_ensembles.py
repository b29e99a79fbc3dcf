"""Ensembles over a task's seeds, from what each of them predicted: the deep ensemble that a user could train instead.

A member is one seed: training rows, initial adapter and order (Lakshminarayanan, Pritzel and Blundell,
arXiv 1612.01474). It costs as many trainings, adapters and forward passes as it has members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from benchmarks.study.compute.alternatives import point_outcome, rows_of
from benchmarks.study.results.predictions import Predictions
from benchmarks.study.results.scores import pooled_mean
from laplora.linearised import entropy
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import evaluate_probs, row_nll

#: Ensemble -> the method of each member.
MEMBERS_OF: Mapping[str, str] = {"seeds": "map", "seeds_laplace": "laplace", "seeds_temperature": "temperature"}
#: One model with a posterior: the alternative to training several.
_ONE = "laplace"


def seed_ensembles(seeds: Sequence[Predictions]) -> list[dict[str, Any]]:
    """Return the record of each ensemble over a task's seeds; none for one seed, or without members' predictions."""
    if len(seeds) < 2 or any(not {*MEMBERS_OF.values()} <= set(p.probs) for p in seeds):
        return []
    labels = seeds[0].labels
    one = torch.stack([p.losses(_ONE) for p in seeds]).mean(0)
    records = []
    for method, probs in ensemble_probs(seeds).items():
        member = MEMBERS_OF[method]
        each = torch.stack([p.probs[member] for p in seeds])
        # The mutual information between label and member: what the members' entropies leave of the mixture's.
        disagreement = entropy(each.mean(0)) - torch.stack([entropy(p) for p in each]).mean(0)
        scored = evaluate_probs(probs, labels, resamples=0)
        alone = [error_auroc(entropy(p.probs[member]), p.mistakes(member)) for p in seeds]
        measured = [a for a in alone if a is not None]
        records.append(
            {
                "task": seeds[0].result.task,
                "method": method,
                "seeds": len(seeds),
                "nll": scored.nll,
                "ece": scored.ece,
                "auroc_error": scored.auroc_error,
                "auroc_disagreement": error_auroc(disagreement, probs.argmax(1) != labels),
                "member_nll": float(torch.stack([p.losses(member) for p in seeds]).mean()),
                "member_auroc": fmean(measured) if measured else None,
                "against_laplace": pooled_mean((row_nll(probs, labels) - one)[None]),
            }
        )
    return records


def ensemble_probs(seeds: Sequence[Predictions]) -> dict[str, torch.Tensor]:
    """Return each ensemble's probabilities, (rows, classes) float64.

    ``seeds_temperature`` has one temperature for the whole average, fitted on the calibration rows: averaging first and
    calibrating then is what helps (Rahaman and Thiery, arXiv 2007.08792). It takes the members' logits, and the same
    calibration rows in all seeds.
    """
    result = {m: torch.stack([p.probs[MEMBERS_OF[m]] for p in seeds]).mean(0) for m in ("seeds", "seeds_laplace")}
    if not all(p.logits for p in seeds):
        return result
    calibration, test = ([p.logits[split] for p in seeds] for split in ("calibration", "test"))
    first = calibration[0]
    if all(torch.equal(one[name], first[name]) for one in calibration for name in ("labels", "class_mask")):
        fitted = rows_of([one["logits"] for one in calibration], first["class_mask"], first["labels"])
        answered = rows_of([one["logits"] for one in test], seeds[0].class_mask, seeds[0].labels)
        result["seeds_temperature"] = point_outcome(fitted, answered, tempered=True).test.probs
    return result
