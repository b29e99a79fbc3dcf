"""``laplora report``: the page from which to decide whether to ship, of an artifact or of rows of your own."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laplora.bulk.answering import How, read
from laplora.bulk.evaluate import Evaluated, evaluate_file
from laplora.bulk.workers import Workers
from laplora.commands import console
from laplora.errors import ConfigError, needs

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact


def report(
    artifact: console.ArtifactOption,
    out: console.PageOption = Path("report.html"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="JSON Lines, CSV or Parquet file of labelled rows to measure."),
    ] = None,
    label_field: console.LabelFieldOption = "label",
    predictive: console.PredictiveOption = None,
    truncate: console.TruncateOption = False,
    texts: console.TextsOption = False,
    batch_size: console.BatchOption = 16,
    device: console.DeviceOption = "auto",
    allowed_bases: console.AllowedBasesOption = "",
) -> None:
    """Write a report: whether to ship, and why, as one HTML file.

    Without --data it is the one that the artifact brings along, of its own test rows. With --data the artifact is
    measured on these rows, which must be none that trained or calibrated it.
    """
    how, bases = How(predictive, batch_size, truncate), console.allowed(allowed_bases)
    if data is None:
        page = _brought(read(artifact, how, bases, console.say))
    else:
        measured = evaluate_file(
            artifact,
            data,
            how,
            Workers(device=device, threads=None),
            label_field=label_field,
            with_answers=True,
            allowed_bases=bases,
            progress=console.say,
        )
        page = _page(measured, data, how, texts)
    console.write_page(out, page)


def _brought(artifact: Artifact) -> bytes:
    from laplora.artifact.report_page import read_report

    if (page := read_report(artifact)) is None:
        raise ConfigError("the artifact brings no report, or not the one that its manifest lists: give --data FILE")
    return page


def _page(measured: Evaluated, data: Path, how: How, texts: bool) -> bytes:
    from laplora.answers.evaluation import unfamiliar_share
    from laplora.answers.explaining import nothing_accepted_of
    from laplora.answers.labels import LabelNames
    from laplora.answers.reporting import MeasuredRows, measured_report

    try:
        from laplora.report.page import html
        from laplora.report.verdict import judge
    except ImportError as error:
        raise needs("report", error) from None
    rows, manifest, records = MeasuredRows(), measured.artifact.manifest, measured.records
    for record in records:
        rows.add(f"line {record['number']}", record["truth"], record["answer"], record["fields"])
    made = measured_report(
        rows,
        manifest,
        measured.methods,
        names=LabelNames.of(manifest),
        predictive=measured.accepted["predictive"],
        title=measured.artifact.name,
        measured_on=f"{len(records)} rows of {data.name}",
        fields=manifest.template.template().fields,
        unfamiliar=unfamiliar_share(manifest, [record["answer"]["flags"] for record in records]),
        nothing=nothing_accepted_of(measured.artifact, measured.accepted["predictive"]),
        notes=[gained] if isinstance(gained := manifest.data.get("fine_tuning"), str) else [],
        provenance=_provenance(measured.artifact, data, how),
        texts=texts,
    )
    return html(made, judge(made)).encode()


def _provenance(artifact: Artifact, data: Path, how: How) -> dict[str, str]:
    from laplora.files.atomic import file_sha256

    return {
        "artifact": f"{artifact.name}, {artifact.digest}",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": f"{data.name}, sha256:{file_sha256(data).removeprefix('sha256:')}",
        "options": ", ".join(f"{name} {value}" for name, value in vars(how).items() if value is not None),
    }
