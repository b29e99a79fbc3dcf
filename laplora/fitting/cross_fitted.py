"""The report of heads on their own labelled rows: every row is answered and decided by what does not know it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import laplora.familiarity
from laplora.answers.review_scores import thresholds_at
from laplora.decisions.uncertainty import Ruled, ruled
from laplora.experts.familiar import compared
from laplora.familiarity.percentile import false_alarms, is_unfamiliar, percentile
from laplora.fitting.evaluation import RowProbs, evaluate_predictives
from laplora.fitting.heads import HeadsPosterior
from laplora.head.folds import parted
from laplora.report.records import Promise, Report, Rows
from laplora.selection.label_audit import text_of

#: Texts that hardly any task is about, by language.
_UNLIKE = Path(laplora.familiarity.__file__).with_name("unlike_texts.json")


def accepted_rows(posterior: HeadsPosterior, flagged: torch.Tensor) -> torch.Tensor:
    """Return (rows,) bool which labelled rows the review rule accepts; ``flagged``: of ``flagged_rows``.

    A row is answered by heads without its fold, and its threshold is set on the answers to the other folds.
    """
    heads, labels = posterior.heads, posterior.classifier.labels
    name, wanted = heads.choice.name, posterior.settings.calibration.wanted
    scores, folds, thresholds = heads.scores[name], heads.labelled.folds, heads.predictives[name].thresholds
    probs, mask = posterior.held_out.exp(), heads.labelled.class_mask
    accepted = torch.zeros(len(folds), dtype=torch.bool)
    for number in torch.unique(folds):
        rest = folds != number
        rule = thresholds_at(thresholds, scores.take(rest), wanted, labels).review
        accepted |= ~rest & ~ruled(rule, scores.score, probs, labels, mask).unsure
    return accepted & ~flagged


def answered_rows(posterior: HeadsPosterior) -> Ruled:
    """Return what the rule that is served says of the labelled rows, each answered by heads without its fold."""
    heads, name = posterior.heads, posterior.heads.choice.name
    rule, labels = heads.predictives[name].thresholds.review, posterior.classifier.labels
    return ruled(rule, heads.scores[name].score, posterior.held_out.exp(), labels, heads.labelled.class_mask)


def flagged_rows(posterior: HeadsPosterior) -> torch.Tensor:
    """Return (rows,) bool which labelled rows are for a person whatever the answer: unfamiliar, or too long and cut."""
    cut = [row.truncated for row in posterior.classifier.encode_examples(posterior.rows)]
    return unfamiliar_rows(posterior) | torch.tensor(cut)


def unfamiliar_rows(posterior: HeadsPosterior) -> torch.Tensor:
    """Return (rows,) bool which labelled rows are flagged as unfamiliar by distances to the rows outside their fold."""
    heads, served = posterior.heads, posterior.heads.served
    name, rows = served.heaviest(heads.choice.name), len(heads.labelled)
    if name is None or name not in served.familiar:
        return torch.zeros(rows, dtype=torch.bool)
    fitted = heads.experts[name].fitted
    states = compared(fitted.rows.blocks, fitted.rows.class_mask)
    scores = torch.zeros(rows, dtype=torch.float64)
    for (_, held_out), fold in zip(parted(fitted.folds), served.familiar[name], strict=True):
        scores[held_out] = fold.score.of(states.take(held_out))
    others_at_least = (1 + rows) * percentile(scores, scores.sort().values) - 1  # and 1, for the row itself
    return is_unfamiliar(others_at_least / rows, false_alarms(posterior.settings.calibration.unfamiliar_rate, rows - 1))


def built_in_texts(posterior: HeadsPosterior) -> str:
    """Return how many built-in texts are flagged as unlike and how many accepted, and the language with the fewest."""
    flags, accepted = dict[str, list[bool]](), 0
    for language, texts in json.loads(_UNLIKE.read_bytes()).items():
        answers = posterior.predict(texts)
        flags[language] = ["unfamiliar" in one.flags for one in answers]
        accepted += sum(one.decision == "accept" for one in answers)
    least = min(flags, key=lambda language: sum(flags[language]) / len(flags[language]))
    flagged, count = sum(map(sum, flags.values())), sum(map(len, flags.values()))
    blind = sum(flags[least]) < len(flags[least]) / 2
    return (
        f"{flagged} of {count} built-in texts of other subjects are flagged as unlike, and {accepted} would be "
        f"accepted; fewest are flagged in {least}, {sum(flags[least])} of {len(flags[least])}"
        + (f". Most {least} texts of other subjects are not noticed: give some a label of their own" if blind else "")
    )


def cross_fitted_report(
    posterior: HeadsPosterior, title: str, source: str, provenance: Mapping[str, str], notes: Sequence[str] = ()
) -> Report:
    """Return the report of labelled rows with one label each, texts included; ``source``: what they are from.

    Label sets are not in it: what they compare with is set on these rows.
    """
    heads, manifest, name = posterior.heads, posterior.predictor.artifact.manifest, posterior.recommended
    labelled, wanted, nothing = heads.labelled, manifest.calibration, posterior.predictor.nothing_accepted(name, None)
    held_out = {("map" if one == "zero_shot" else one): of.held_out.exp() for one, of in posterior.experts.items()}
    records = {one: record for one, record in manifest.predictives.items() if one in held_out}
    rows = RowProbs(held_out, held_out.get("map"), labelled.labels, labelled.class_mask, 1, labelled.groups)
    measured, _, _ = evaluate_predictives(rows, records, wanted.conformal)
    flagged, score = flagged_rows(posterior), heads.scores[name].score
    rule, of = manifest.predictives[name].thresholds.review, answered_rows(posterior)
    accepted = int((~flagged & ~of.unsure).sum())
    by_folds = accepted_rows(posterior, flagged)
    served = "The threshold that is served, fitted on all rows," if rule.costs is None else "The rule of costs"
    other = f", those of the folds {int(by_folds.sum())}: far apart, so new rows may differ from both"
    if abs(accepted - int(by_folds.sum())) <= len(labelled) / 10:
        other = ""
    return Report(
        title=title,
        measured_on=f"{len(labelled)} rows of {source}, each answered by heads and a threshold that do not know it",
        served=name,
        reason=heads.choice.reason,
        labels=manifest.labels,
        promise=Promise(
            rule.target_risk,
            wanted.coverage,
            len(labelled),
            nothing_accepted=nothing.message if nothing else None,
            refitted=True,
            risks=rule.risks,
        ),
        methods={str(one): each.to_json() for one, each in measured.items()},
        rows=Rows(
            labels=labelled.labels,
            map_probs=rows.map_probs,
            probs=held_out[name],
            score=score,
            review=~by_folds,
            references=[example.id for example in posterior.rows],
            texts=[text_of(example.fields) for example in posterior.rows],
            groups=labelled.groups,
            answered=of.answered,
        ),
        costs=rule.costs,
        notes=[
            f"{served} accepts {accepted} of them{other}. Inputs unlike the "
            f"others, and longer ones than are read, go to review, {int(flagged.sum())} of these rows among them",
            *notes,
        ],
        suspects=posterior.audit().to_rows(posterior.rows, manifest.labels) if labelled.labels.ndim == 1 else None,
        provenance=provenance,
    )
