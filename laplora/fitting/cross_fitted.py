"""The report of heads on their own labelled rows: every row is answered and decided by what does not know it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from laplora.decisions.review import accept_threshold
from laplora.fitting.evaluation import RowProbs, evaluate_predictives
from laplora.fitting.heads import HeadsPosterior
from laplora.report.records import Promise, Report, Rows


def accepted_rows(posterior: HeadsPosterior) -> torch.Tensor:
    """Return (rows,) bool which labelled rows are accepted at the target risk.

    A row is answered by heads without its fold, and its threshold is set on the answers to the other folds.
    """
    heads, risk = posterior.heads, posterior.settings.calibration.target_risk
    scores, folds = heads.scores[heads.choice.name], heads.labelled.folds
    accepted = torch.zeros(len(folds), dtype=torch.bool)
    for number in torch.unique(folds):
        rest = folds != number
        limit = accept_threshold(scores.score[rest], scores.error[rest], risk)
        accepted |= ~rest & (scores.score <= (-1 if limit is None else limit))
    return accepted


def cross_fitted_report(posterior: HeadsPosterior, title: str, source: str, provenance: Mapping[str, str]) -> Report:
    """Return the report of labelled rows with one label each, texts included; ``source``: what they are from.

    Label sets and the flag ``unfamiliar`` are not in it: what they compare with is set on these rows.
    """
    heads, manifest, name = posterior.heads, posterior.predictor.artifact.manifest, posterior.recommended
    labelled, wanted, nothing = heads.labelled, manifest.calibration, posterior.predictor.nothing_accepted(name, None)
    held_out = {("map" if one == "zero_shot" else one): of.held_out.exp() for one, of in posterior.experts.items()}
    records = {one: record for one, record in manifest.predictives.items() if one in held_out}
    rows = RowProbs(held_out, held_out.get("map"), labelled.labels, labelled.class_mask, 1, labelled.groups)
    measured, _, _ = evaluate_predictives(rows, records, wanted.conformal)
    alarms = manifest.familiarity.false_alarms if manifest.familiarity else 0.0
    return Report(
        title=title,
        measured_on=f"{len(labelled)} rows of {source}, each answered by heads and a threshold that do not know it",
        served=name,
        reason=heads.choice.reason,
        labels=manifest.labels,
        promise=Promise(
            posterior.settings.calibration.target_risk,
            wanted.coverage,
            len(labelled),
            nothing_accepted=nothing.message if nothing else None,
        ),
        methods={str(one): each.to_json() for one, each in measured.items()},
        rows=Rows(
            labels=labelled.labels,
            map_probs=rows.map_probs,
            probs=held_out[name],
            score=heads.scores[name].score,
            review=~accepted_rows(posterior),
            references=[example.id for example in posterior.rows],
            texts=[" · ".join(map(str, example.fields.values())) for example in posterior.rows],
            groups=labelled.groups,
        ),
        notes=[f"Inputs unlike these rows go to review too, as do at most {alarms:.0%} of those like them"],
        provenance=provenance,
    )
