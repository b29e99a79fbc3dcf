"""The report of an adapter that was fitted after its training: its answers to the test rows as one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from laplora.answers.prediction import Prediction
from laplora.fitting.calibrated import CalibratedPosterior
from laplora.fitting.describing import installed_versions
from laplora.fitting.evaluation import Measured
from laplora.fitting.rows import read_rows
from laplora.metrics.several_labels import binary_probs
from laplora.prompts.examples import Example, label_tensor
from laplora.report.records import Promise, Report, Rows, Slicing
from laplora.report.slices import slices_of


def adapter_report(
    posterior: CalibratedPosterior,
    measured: Measured,
    rows: Sequence[dict[str, Any]],
    label_field: str,
    *,
    title: str,
    test: Path,
    provenance: dict[str, str],
    notes: Sequence[str] = (),
) -> Report:
    """Return the report of test rows, which the recommended predictive answers once more, as its server would.

    Args:
        measured: what ``posterior.evaluate`` found on the same rows; test: their file.
    """
    classifier, manifest = posterior.classifier, posterior.predictor.artifact.manifest
    examples = read_rows(rows, classifier, label_field, "test row")
    answers = posterior.predict(rows)
    served = posterior.recommended
    rule = manifest.predictives[served].thresholds.review
    several = manifest.likelihood == "bernoulli"
    questions = len(classifier.labels) if several else 1
    gain = measured.gain
    of_each = ["Several labels may be right: each label of an input counts as a question of its own"]
    return Report(
        title=title,
        measured_on=f"{len(examples)} rows of {test.name}, given as test rows",
        served=served,
        reason=manifest.recommended.reason,
        labels=("absent", "present") if several else classifier.labels,
        promise=Promise(
            target_risk=rule.target_risk,
            coverage=manifest.calibration.coverage,
            calibration_rows=manifest.calibration.rows,
            false_alarms=manifest.familiarity.false_alarms if manifest.familiarity else None,
            bounded=rule.guarantee == "upper_bound",
        ),
        methods=measured.to_json(),
        rows=_rows(answers, examples, classifier.labels, rule.threshold, several=several),
        gain=(gain.difference, gain.low, gain.high) if gain else None,
        unfamiliar=measured.unfamiliar,
        questions=questions,
        notes=[*notes, *(of_each if several else ())],
        provenance={"measured": datetime.now(UTC).isoformat(timespec="seconds"), **provenance}
        | {"versions": ", ".join(f"{name} {version}" for name, version in installed_versions().items())},
        configuration=json.dumps(posterior.fit.settings.model_dump(mode="json"), indent=2),
    )


def _rows(
    answers: Sequence[Prediction],
    examples: Sequence[Example],
    labels: Sequence[str],
    threshold: float | None,
    *,
    several: bool,
) -> Rows:
    each = len(labels) if several else 1

    def column(values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values).repeat_interleave(each)

    probs, map_probs = (_probs(parts, len(labels), several=several) for parts in _both(answers))
    truths = label_tensor(examples, len(labels)).flatten()
    alone = not several and answers[0].probs_std is not None and answers[0].epistemic is not None
    unfamiliar = torch.tensor(["unfamiliar" in answer.flags for answer in answers])
    slices = slices_of([one.fields for one in examples], [answer.tokens for answer in answers], unfamiliar)
    slices = [
        Slicing(one.title, one.names, one.index.repeat_interleave(each), names_are_texts=one.names_are_texts)
        for one in slices
    ]
    if several:
        slices.insert(0, Slicing("label", labels, torch.arange(each).repeat(len(answers))))
    return Rows(
        labels=truths,
        map_probs=map_probs,
        probs=probs,
        score=column([answer.score for answer in answers]),
        threshold=threshold,
        review=column([answer.decision == "review" for answer in answers]),
        epistemic=column([answer.epistemic for answer in answers]) if alone else None,
        std=column([answer.probs_std[answer.label_index] for answer in answers if answer.probs_std]) if alone else None,
        references=[
            f"{one.id}, {label}" if label else one.id for one in examples for label in (labels if several else ("",))
        ],
        slices=slices,
    )


def _both(answers: Sequence[Prediction]) -> tuple[list[list[float]], list[list[float]]]:
    return [answer.probs for answer in answers], [answer.map_probs for answer in answers]


def _probs(parts: Sequence[Sequence[float]], classes: int, *, several: bool) -> torch.Tensor:
    """Return (rows, classes) float64; with fewer choices a row has probability 0 at the classes it cannot take."""
    if several:
        return binary_probs(torch.tensor(parts, dtype=torch.float64))
    return torch.tensor([[*row, *[0.0] * (classes - len(row))] for row in parts], dtype=torch.float64)
