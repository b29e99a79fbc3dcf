"""``laplora report``: the page from which to decide whether to ship, of an artifact or of rows of your own."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laplora.bulk.answering import How, load
from laplora.bulk.measuring import MeasureHow, labelled_examples, measured_rows
from laplora.commands.console import (
    AllowedBasesOption,
    ArtifactOption,
    BatchOption,
    DeviceOption,
    PredictiveOption,
    folder_of,
    say,
    say_stage,
)
from laplora.errors import ConfigError, needs

if TYPE_CHECKING:
    from laplora.predictor import Predictor


def report(
    artifact: ArtifactOption,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="HTML file to write.")] = Path("report.html"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="JSON Lines, CSV or Parquet file of labelled rows to measure."),
    ] = None,
    label_field: Annotated[str, typer.Option(metavar="NAME", help="Field of a row that has its label.")] = "label",
    predictive: PredictiveOption = None,
    order_average: Annotated[
        str | None, typer.Option(metavar="reverse|all", help="Ask each question in several orders of its choices.")
    ] = None,
    truncate: Annotated[bool, typer.Option(help="Cut inputs that are too long, instead of an error.")] = False,
    texts: Annotated[bool, typer.Option(help="Whether the page shows the rows' texts.")] = False,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    allowed_bases: AllowedBasesOption = "",
) -> None:
    """Write a report: whether to ship, and why, as one HTML file.

    Without --data it is the one that the artifact brings along, of its own test rows. With --data the artifact is
    measured on these rows, which must be none that trained or calibrated it.
    """
    from laplora.files import write_whole

    how = How(predictive, batch_size, truncate, order_average)
    folder = folder_of(artifact, allowed_bases)
    page = _brought(folder) if data is None else _measured(folder, data, label_field, how, texts, device)
    try:
        write_whole(out, page)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    say(f"{out} is written; open it in a browser")


def _brought(artifact: Path) -> bytes:
    from laplora.artifact.folder import read_artifact
    from laplora.artifact.report_page import read_report

    if (page := read_report(read_artifact(artifact))) is None:
        raise ConfigError("the artifact brings no report, or not the one that its manifest lists: give --data FILE")
    return page


def _measured(artifact: Path, data: Path, label_field: str, how: How, texts: bool, device: str) -> bytes:
    try:
        from laplora.answers.evaluation import unfamiliar_share
        from laplora.answers.labels import LabelNames
        from laplora.answers.reporting import MeasuredRows, measured_report
        from laplora.report.page import html
        from laplora.report.verdict import judge
        from service.http.answers import prediction_out
        from service.http.schemas.inputs import Input
        from service.http.schemas.predict import PredictOptions
    except ImportError as error:
        raise needs("report", error) from None
    predictor = load(artifact, device, how, progress=say_stage)
    examples = labelled_examples(data, label_field, predictor.artifact)
    measured = measured_rows(predictor, examples, how, MeasureHow())
    rows, manifest = MeasuredRows(), predictor.artifact.manifest
    for number, (example, answer, truth) in enumerate(
        zip(examples, measured.predictions, measured.truths, strict=True)
    ):
        fields: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in example.fields.items()
        }
        out = prediction_out(number, Input.model_construct(None, **fields), answer, PredictOptions())
        rows.add(number, truth, out.model_dump(), fields)
    made = measured_report(
        rows,
        manifest,
        measured.methods,
        names=LabelNames.of(manifest),
        predictive=how.predictive or predictor.recommended,
        averaged=how.orders is not None,
        title=predictor.artifact.name,
        measured_on=f"{len(examples)} rows of {data.name}",
        fields=predictor.artifact.manifest.template.template().fields,
        unfamiliar=unfamiliar_share(manifest, [answer.flags for answer in measured.predictions]),
        notes=[],
        provenance=_provenance(predictor, data, how),
        texts=texts,
    )
    return html(made, judge(made)).encode()


def _provenance(predictor: Predictor, data: Path, how: How) -> dict[str, str]:
    from laplora.files import file_sha256

    manifest = predictor.artifact.manifest
    return {
        "artifact": f"{predictor.artifact.name}, {predictor.artifact.digest}",
        "base model": f"{manifest.base_model}, {manifest.quantization}",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": f"{data.name}, sha256:{file_sha256(data).removeprefix('sha256:')}",
        "options": ", ".join(f"{name} {value}" for name, value in vars(how).items() if value is not None),
    }
