"""Warnings about a calibration split on which too little can be fitted."""

from __future__ import annotations

import warnings

import torch

#: Fewer calibration rows than this make every fitted value a guess.
FEWEST_ROWS = 20


class SmallCalibrationWarning(UserWarning):
    """A calibration split that is too small, or that lacks labels, for what is fitted on it to mean much."""


def warn_about_rows(rows: int, what: str, stacklevel: int = 3) -> None:
    """Warn when ``what`` is done on fewer than ``FEWEST_ROWS`` rows.

    Args:
        stacklevel: of the warning; 3 is the caller of the function that calls this one.

    Warns:
        SmallCalibrationWarning: fewer rows.
    """
    if rows < FEWEST_ROWS:
        message = f"{what} on {rows} calibration rows is a guess: use at least {FEWEST_ROWS}"
        warnings.warn(message, SmallCalibrationWarning, stacklevel=stacklevel)


def warn_about_labels(labels: torch.Tensor, classes: int, split: str, stacklevel: int = 3) -> None:
    """Warn when labels never occur in a calibration split: what is fitted there says nothing about them.

    Args:
        labels: (rows,) int64, 0 to ``classes - 1``.
        split: the split's name, for the message.
        stacklevel: as of ``warn_about_rows``.

    Warns:
        SmallCalibrationWarning: one label only, or labels without a row.
    """
    seen = sorted(set(labels.tolist()))
    missing = [k for k in range(classes) if k not in seen]
    if len(seen) == 1:
        message = (
            f"every row of {split!r} has the label {seen[0]}: temperature, sets and thresholds fitted on it reward "
            "answering that label, and mean nothing for others"
        )
    elif missing:
        message = (
            f"no row of {split!r} has the labels {missing[:8]}: the coverage and the risk promised for it do not hold "
            "for rows of these labels"
        )
    else:
        return
    warnings.warn(message, SmallCalibrationWarning, stacklevel=stacklevel)
