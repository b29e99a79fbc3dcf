"""The report of measured rows: what ``laplora.report`` is told of answers as POST /predict writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from laplora.answers.evaluation import questions, right_answers
from laplora.answers.labels import LabelNames, Truth
from laplora.answers.reasons import reason_for
from laplora.prompts.questions import as_text

if TYPE_CHECKING:
    from laplora.answers.explaining import NothingAccepted
    from laplora.artifact.manifest import Manifest
    from laplora.decisions.thresholds import ReviewRule
    from laplora.report.records import Report, Rows

#: The fields of an answer by label that a report needs.
_BY_LABEL = ("map_probs", "probs")
BY_LABEL = len(_BY_LABEL)


@dataclass
class MeasuredRows:
    """Scored rows, column by column.

    Attributes:
        references: where each is to be found, such as its line.
        truths: where the right labels are among the artifact's.
        answers: as of POST /predict, with ``epistemic`` (nats or None) and ``unfamiliar``; what is by label is a list,
            in the labels' order.
        values: of each row the template's fields, and others that it may be sliced by.
    """

    references: list[str] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)

    def add(self, reference: str, truth: Truth, answer: Mapping[str, Any], values: dict[str, Any]) -> None:
        """Add a row, with an answer as POST /predict writes it; of it is kept what a report needs."""
        kept = {name: answer[name] for name in ("score", "decision", "tokens", "prediction_set")}
        for name in _BY_LABEL:
            # The numbers alone: a row's own copy of every label would be most of what is in memory.
            kept[name] = None if answer[name] is None else list(answer[name].values())
        kept["epistemic"] = (answer["uncertainty"] or {}).get("epistemic")
        kept["unfamiliar"] = "unfamiliar" in answer["flags"]
        self.references.append(reference)
        self.truths.append(truth)
        self.answers.append(kept)
        self.values.append(values)


def measured_report(
    taken: MeasuredRows,
    manifest: Manifest,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    names: LabelNames,
    predictive: str,
    title: str,
    measured_on: str,
    fields: Sequence[str],
    unfamiliar: float | None,
    nothing: NothingAccepted | None,
    notes: Sequence[str],
    provenance: Mapping[str, str],
    texts: bool,
) -> Report:
    """Return the report of rows that an artifact answered.

    Args:
        taken: at least one row; manifest: of the artifact, which has what it promises, and names its models.
        methods: metrics by method, as of POST /evaluate.
        names: the artifact's labels.
        predictive: the one that answered.
        fields: of the rows' values those that the prompt has; texts: whether they are shown.
        unfamiliar: share of ``taken`` that is flagged so; None where nothing flags them.
        nothing: where the predictive accepts nothing at the artifact's target risk.
    """
    from laplora.linearised import most_probable
    from laplora.report.records import Promise, Report

    records = {str(name): record for name, record in manifest.predictives.items()}
    rule = records[predictive].thresholds.review
    shown = {name: dict(values) for name, values in methods.items()}
    if not names.several and "sets" not in shown[predictive]:
        pairs = zip(most_probable(right_answers(taken.truths, names)).tolist(), taken.answers, strict=True)
        held = sum(names.names[right] in answer["prediction_set"] for right, answer in pairs)
        shown[predictive]["sets"] = {"coverage": held / len(taken.references)}
    gain = shown[predictive].get("over_temperature")
    familiarity = manifest.familiarity
    several = (
        "Several labels may be right: each label of an input counts as a question of its own. Intervals of shares take "
        "questions for independent, and are too narrow where an input's labels go together"
    )
    return Report(
        title=title,
        measured_on=measured_on,
        served=predictive,
        reason=reason_for(manifest, predictive),
        labels=("absent", "present") if names.several else names.names,
        promise=Promise(
            target_risk=rule.target_risk,
            coverage=manifest.calibration.coverage,
            calibration_rows=manifest.calibration.rows,
            false_alarms=None if familiarity is None else familiarity.false_alarms,
            bounded=rule.guarantee == "upper_bound",
            nothing_accepted=nothing.message if nothing else None,
            risks=rule.risks,
        ),
        methods=shown,
        rows=_rows(taken, names, fields, rule, texts=texts),
        costs=rule.costs,
        gain=None if gain is None else (gain["difference"], gain["low"], gain["high"]),
        unfamiliar=unfamiliar,
        questions=names.questions,
        notes=[*notes, *([several] if names.several else ())],
        provenance={**_models(manifest), **provenance},
    )


def _models(manifest: Manifest) -> dict[str, str]:
    """Return the models of an artifact, by what they are; and the question, if it corrects a model elsewhere."""
    base, question = f"{manifest.base_model}, {manifest.quantization}", manifest.answers
    if manifest.template.answered is None or question is None:
        return {"base model": base}
    asked = f"{question.asked.type}: {as_text(question.asked.instructions or '')} ({', '.join(question.labels)})"
    return {"corrected model": manifest.template.answered, "question": asked, "sentence encoder": base}


def _rows(taken: MeasuredRows, names: LabelNames, fields: Sequence[str], rule: ReviewRule, *, texts: bool) -> Rows:
    import torch

    from laplora.decisions.costs import cheapest
    from laplora.report.records import Rows, Slicing
    from laplora.report.slices import slices_of

    answers, each = taken.answers, names.questions

    def column(values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(each)

    probs, labels = questions([answer["probs"] for answer in answers], taken.truths, names)
    has_map = all(answer["map_probs"] is not None for answer in answers)
    at_map = questions([answer["map_probs"] for answer in answers], taken.truths, names)[0] if has_map else None
    has_epistemic = not names.several and all(answer["epistemic"] is not None for answer in answers)
    slicings = slices_of(
        taken.values, [answer["tokens"] for answer in answers], torch.tensor([a["unfamiliar"] for a in answers])
    )
    slicings = [
        Slicing(one.title, one.names, one.index.repeat_interleave(each))
        for one in slicings
        if texts or not one.names_are_texts
    ]
    if names.several:
        which = torch.arange(each).repeat(len(answers))
        slicings.insert(0, Slicing("label", names.names, which))
    return Rows(
        labels=labels,
        map_probs=at_map,
        probs=probs,
        score=column([answer["score"] for answer in answers]),
        threshold=None if rule.by_label or rule.costs else rule.threshold,
        answered=None if rule.costs is None else cheapest(probs, rule.costs.matrix(names.names), probs > 0)[0],
        review=column([answer["decision"] == "review" for answer in answers]).bool(),
        epistemic=column([answer["epistemic"] for answer in answers]) if has_epistemic else None,
        references=[
            f"{reference}, {label}" if label else reference
            for reference in taken.references
            for label in (names.names if names.several else ("",))
        ],
        texts=[row_text(row, fields) for row in taken.values for _ in range(each)] if texts else None,
        slices=slicings,
    )


def row_text(values: Mapping[str, Any], fields: Iterable[str]) -> str:
    parts = (values[name] for name in fields if name in values)
    return " · ".join(part if isinstance(part, str) else " / ".join(part) for part in parts)
