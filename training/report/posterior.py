"""The report of a posterior in memory on labelled rows, which it answers as its server would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from laplora.answers.labels import LabelNames
from laplora.answers.reporting import MeasuredRows, measured_report
from laplora.answers.written import written_answer
from laplora.fitting.calibrated import CalibratedPosterior
from laplora.fitting.evaluation import Measured
from laplora.fitting.rows import groups_of
from laplora.prompts.examples import Example
from laplora.report.records import Report


def posterior_report(
    posterior: CalibratedPosterior,
    examples: Sequence[Example],
    measured: Measured,
    *,
    title: str,
    measured_on: str,
    provenance: Mapping[str, str],
    configuration: str,
    notes: Sequence[str] = (),
    texts: bool = False,
) -> Report:
    """Return the report of rows by the recommended predictive; arguments as of ``Report``.

    Args:
        examples: rows that nothing was fitted on; measured: what was measured on them.
        texts: whether the rows' texts are in it.
    """
    classifier, manifest, taken = posterior.classifier, posterior.predictor.artifact.manifest, MeasuredRows()
    for example, answer in zip(examples, measured.answers, strict=True):
        taken.add(example.id, example.truth, written_answer(answer, example.fields), dict(example.fields))
    report = measured_report(
        taken,
        manifest,
        measured.to_json(),
        names=LabelNames.of(manifest),
        predictive=posterior.recommended,
        title=title,
        measured_on=measured_on,
        fields=classifier.template.fields,
        unfamiliar=measured.unfamiliar,
        nothing=posterior.predictor.nothing_accepted(posterior.recommended, None),
        notes=notes,
        provenance=provenance,
        texts=texts,
    )
    rows = report.rows if report.questions > 1 else replace(report.rows, groups=groups_of(classifier, examples))
    gain = measured.gain
    return replace(
        report,
        rows=rows,
        gain=(gain.difference, gain.low, gain.high) if gain else None,
        configuration=configuration,
    )
