"""``laplora evaluate``: an artifact against labelled rows, with thresholds that fail a script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laplora.answers.evaluation import MeasureHow
from laplora.bulk.answering import WINDOW, How, read
from laplora.bulk.evaluate import Evaluated, evaluate_file
from laplora.bulk.rows import Source
from laplora.bulk.workers import Workers
from laplora.commands import console
from laplora.commands.thresholds import Crossed, MetricThreshold

if TYPE_CHECKING:
    from laplora.artifact.manifest import Manifest

_WITH_INTERVAL = ("accuracy", "nll", "brier", "auroc_error")
#: Shown of each method, in this order.
_COLUMNS = ("accuracy", "nll", "ece", "brier", "auroc_error")


def evaluate(
    artifact: console.ArtifactOption,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="FILE",
            help="JSON Lines, CSV or Parquet: the template's fields, and the label; also s3://.",
        ),
    ],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THRESHOLD", help="Exit with 1 where this holds: 'ece_excess>0', 'map.accuracy<0.8'. Repeatable."
        ),
    ] = None,
    label_field: console.LabelFieldOption = "label",
    text: console.TextFieldOption = "text",
    predictive: console.PredictiveOption = None,
    target_risk: console.TargetRiskOption = None,
    costs: console.CostsOption = None,
    truncate: console.TruncateOption = False,
    resamples: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=100_000,
            help="Resamples of the bootstrap, which most intervals are of, 10 at least; 0: no intervals.",
        ),
    ] = 1000,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep finished blocks of rows here until the end: the same command goes on from them.",
        ),
    ] = None,
    workers: console.WorkersOption = 1,
    threads: console.ThreadsOption = None,
    batch_size: console.BatchOption = 16,
    device: console.DeviceOption = "auto",
    allowed_bases: console.AllowedBasesOption = "",
    as_json: console.JsonOption = False,
) -> None:
    """Measure an artifact on labelled rows, without a server: how many it accepts, and how often these are wrong.

    A table has the accuracy, NLL, ECE and more of every predictive.

    --fail-if takes [PREDICTIVE.]METRIC, then >, <, >= or <=, and a number. PREDICTIVE is by default the one that
    answers. Metrics: accuracy, nll, ece, ece_limit, ece_excess, brier, auroc_error, auprc_error, aurc, excess_aurc.
    METRIC.low and METRIC.high are the ends of its 95 % interval. ece_excess is the ECE above what one calibrated model
    in 40 has by chance on as many rows. Exit status: 0 all well, 1 a threshold was crossed, 2 it could not run.
    """
    thresholds = [MetricThreshold.parse(text) for text in fail_if or ()]
    how, measure = How(predictive, batch_size, truncate, console.wanted(target_risk, costs)), MeasureHow(resamples)
    Source.at(data, WINDOW)  # is there, before an artifact is fetched
    manifest = read(artifact, how, console.allowed(allowed_bases), console.say).manifest
    for threshold in thresholds:
        threshold.check_predictive(_to_measure(manifest, how))
    measured = evaluate_file(
        artifact,
        data,
        how,
        Workers(workers, device, threads or (1 if parts or workers > 1 else None)),
        measure,
        parts=parts,
        label_field=label_field,
        text_field=text,
        allowed_bases=console.allowed(allowed_bases),
        progress=console.say,
    )
    crossed = [threshold.check(measured.methods, measured.answering) for threshold in thresholds]
    if as_json:
        console.write(json.dumps(_json(measured, crossed), allow_nan=False))
    else:
        for line in (_accepted(measured), *_table(measured.methods, measured.answering), *_verdicts(crossed)):
            console.write(line)
    raise typer.Exit(console.Status.FAILED if any(one.failed for one in crossed) else console.Status.DONE)


def _to_measure(manifest: Manifest, how: How) -> list[str]:
    """Return the methods that will be measured: those that need the posterior where the one that answers does."""
    from laplora.predictive.kinds import has_jacobians

    plain = [name for name in manifest.servable if not has_jacobians(name)]
    spread = (how.predictive or manifest.recommended.predictive) not in plain
    return list(manifest.servable if spread else plain)


def _json(measured: Evaluated, crossed: Sequence[Crossed]) -> dict[str, Any]:
    artifact = measured.artifact
    return {
        "artifact": {"name": artifact.name, "digest": artifact.digest},
        "predictive": measured.answering,
        "rows": len(measured.records),
        "accepted": measured.accepted,
        "metrics": measured.methods,
        "bars": [asdict(one) for one in crossed],
        "failed": any(one.failed for one in crossed),
    }


def _accepted(measured: Evaluated) -> str:
    """Return how many rows need no person, and how many of these are wrong, in a line."""
    from laplora.report.verdict import cost_in_words, percent

    found, rows = measured.accepted, len(measured.records)
    risk = found.get("target_risk")
    at = "by their costs" if risk is None else "at target error rates by label"
    at = f"at a target error rate of {percent(risk)}" if isinstance(risk, float) else at
    said = f"accepted {at}: {found['rows']} of {rows} rows"
    if "cost" in found:
        said = f"{cost_in_words(found['cost'])}\n{said}"
    if found["interval"] is None:
        return said
    rate, low, high = map(percent, (found["error_rate"], *found["interval"]))
    whose = "of their labels" if measured.artifact.manifest.likelihood == "bernoulli" else "of these"
    return f"{said} ({percent(found['share'])}), and {rate} {whose} are wrong (95 %: {low} to {high})"


def _table(measured: Mapping[str, Mapping[str, Any]], answering: str) -> list[str]:
    """Return the metrics as a table of text; the method that answers has a star."""
    columns = [*_COLUMNS, *(name for name in ("kl", "mae", "rps") if name in measured[answering])]
    cells = [["method", *columns]]
    for name, metrics in measured.items():
        values = ["-" if metrics.get(column) is None else f"{metrics[column]:.3f}" for column in columns]
        cells.append([f"{name} *" if name == answering else name, *values])
    first, *rest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([name.ljust(first), *map(str.rjust, values, rest)]) for name, *values in cells]
    intervals = measured[answering]["intervals"]
    known = [
        f"{name} {intervals[name][0]:.3f} to {intervals[name][1]:.3f}" for name in _WITH_INTERVAL if name in intervals
    ]
    by_chance = f"a calibrated model's ECE is below {measured[answering]['ece_limit']:.3f} in 39 of 40 cases"
    return [
        *lines,
        "* answers. nll is in nats; auroc_error: how well the uncertainty ranks the mistakes",
        f"{answering}, 95 %: {', '.join(known)}; {by_chance}",
    ]


def _verdicts(crossed: Sequence[Crossed]) -> list[str]:
    lines = []
    for one in crossed:
        value = "cannot be measured on these rows" if one.value is None else f"is {one.value:.4f}"
        interval = "" if one.interval is None else f" (95 % {one.interval[0]:.4f} to {one.interval[1]:.4f})"
        lines.append(f"{'FAILED' if one.failed else 'passed'}: {one.bar} of {one.predictive}: {value}{interval}")
    return lines
