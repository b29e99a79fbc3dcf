"""The section ``student``, and the options of ``python -m training distil``: whose answers an adapter is trained on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import Field

from laplora.predictive.kinds import PredictiveName
from laplora.settings import Section
from training.config.overrides import add_overrides

#: Share of a training row's target that is its label.
LABEL_WEIGHT = 0.5


class StudentConfig(Section):
    """An adapter that is trained on a finished artifact's probabilities over unlabelled inputs."""

    teacher: Path = Field(description="folder of the artifact that teaches, made from the same rows")
    inputs: Path = Field(description="JSON Lines, CSV or Parquet file of unlabelled inputs")
    predictive: PredictiveName | None = Field(
        None, description="of the teacher, whose probabilities are learned; null: the one that it recommends"
    )
    folds: Path | None = Field(
        None,
        description="folder of the teacher's run, of calibration.rows: cross_fit: the probabilities of its folds' "
        "adapters and of the artifact's are averaged, each at the artifact's temperature; null: the artifact's alone",
    )
    label_weight: float = Field(
        LABEL_WEIGHT,
        ge=0,
        le=1,
        description="share of a training row's target that is its label; the rest is the teacher's probabilities",
    )
    calibration: Path | None = Field(
        None,
        description="JSON Lines, CSV or Parquet file of labelled rows that the teacher never saw, which calibrate in "
        "place of data's, and these then train; needed where the teacher learned from their labels",
    )


@dataclass(frozen=True)
class DistilRequest:
    """The options of ``python -m training distil``.

    Attributes:
        artifact: folder of the teacher; inputs, predictive, folds, label_weight, calibration: as of
            ``StudentConfig``.
        overrides: ``section.key=value`` of the student's run.
    """

    artifact: Path
    inputs: Path
    predictive: PredictiveName | None = None
    folds: Path | None = None
    label_weight: float = LABEL_WEIGHT
    calibration: Path | None = None
    overrides: tuple[str, ...] = ()


def add_options(job: argparse.ArgumentParser) -> None:
    """Give a command line the options of the job."""
    job.add_argument("--artifact", type=Path, required=True, help="folder of the teacher")
    job.add_argument(
        "--inputs", type=Path, required=True, help="JSON Lines, CSV or Parquet file of inputs; labels are ignored"
    )
    predictive = "of the teacher, whose probabilities are learned (default: the one that it recommends)"
    job.add_argument("--predictive", choices=get_args(PredictiveName), help=predictive)
    folds = "folder of the teacher's run, whose folds' adapters answer beside the artifact's (default: that one alone)"
    job.add_argument("--folds", type=Path, help=folds)
    weight = f"share of a training row's target that is its label (default: {LABEL_WEIGHT})"
    job.add_argument("--label-weight", type=float, default=LABEL_WEIGHT, help=weight)
    calibration = "file of labelled rows that the teacher never saw, to calibrate on (default: those of the teacher)"
    job.add_argument("--calibration", type=Path, help=calibration)
    add_overrides(job, " of the teacher's configuration", "optimizer.steps=2000")


def request_of(options: argparse.Namespace) -> DistilRequest:
    """Return what the command line asks for."""
    given = {name: getattr(options, name) for name in DistilRequest.__dataclass_fields__}
    return DistilRequest(**given | {"overrides": tuple(options.overrides)})
