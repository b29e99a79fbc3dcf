"""Checks of the tensors that metrics and decisions take. They return tensors on the CPU, float64 or int64.

Each raises DataError for no rows, or shapes, types or values that do not fit, and NonFiniteError for NaN or infinity.
"""

from __future__ import annotations

import torch

from laplora.errors import DataError, NonFiniteError
from laplora.linearised import most_probable

#: A row of probabilities sums to 1 within this; float32 probabilities of many classes do, logits do not.
_SUM_TOLERANCE = 1e-3


def check_finite(values: torch.Tensor, name: str) -> None:
    """Check that a tensor, which the message calls ``name``, is finite."""
    if not bool(values.isfinite().all()):
        raise NonFiniteError(f"{name} holds NaN or infinity")


def check_columns(rows: int, **columns: torch.Tensor | None) -> None:
    """Check that every column given is (rows,), not empty, and finite."""
    for name, values in columns.items():
        if values is None:
            continue
        if values.shape != (rows,) or not rows:
            raise DataError(f"{name} must be ({rows},) with at least one row, got {tuple(values.shape)}")
        check_finite(values, name)


def checked_column(values: torch.Tensor, name: str) -> torch.Tensor:
    """Return (rows,) float64 values."""
    check_columns(values.numel(), **{name: values})
    return values.detach().to("cpu", torch.float64)


def checked_score(score: torch.Tensor, errors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows,) float64 scores and (rows,) bool errors, true at mistakes."""
    if errors.dtype != torch.bool:
        raise DataError(f"errors must be bool, true at mistakes, got {errors.dtype}")
    check_columns(len(errors), score=score, errors=errors)
    return score.detach().to("cpu", torch.float64), errors.detach().cpu()


def checked_values(values: torch.Tensor, class_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, classes) float64 values, finite at possible classes, and the mask of those, one a row at least."""
    values, mask = values.detach().to("cpu", torch.float64), class_mask.detach().cpu()
    if values.ndim != 2 or mask.shape != values.shape or mask.dtype != torch.bool:
        raise DataError(
            f"expected (rows, classes) values and a bool mask of the same shape, got {tuple(values.shape)} and "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
    if not mask.any(1).all():
        raise DataError("each row needs at least one possible class")
    check_finite(values[mask], "a possible class")
    return values, mask


def checked_labels(labels: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows,) int64 labels, of soft ones the most probable; arguments as of ``checked_targets``."""
    return most_probable(checked_targets(labels, class_mask))


def checked_targets(labels: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows,) int64 labels, or soft ones, (rows, classes) float64 (``laplora.linearised.cross_entropy``).

    Each is a possible class of its row by ``class_mask`` (rows, classes) on the CPU.
    """
    labels = labels.detach().cpu()
    if labels.is_floating_point() and labels.shape == class_mask.shape:
        if not len(labels):
            raise DataError("expected at least one row, got 0")
        labels = labels.double()
        check_finite(labels, "labels")
        if (labels < 0).any() or ((labels.sum(1) - 1).abs() > _SUM_TOLERANCE).any() or labels[~class_mask].any():
            raise DataError("each row of soft labels must be at least 0, sum to 1, and be 0 at impossible classes")
        return labels
    if labels.shape != class_mask.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels must be ({len(class_mask)},) integers, got {tuple(labels.shape)} {labels.dtype}")
    if not len(labels):
        raise DataError("expected at least one row, got 0")
    labels, classes = labels.long(), class_mask.shape[1]
    if labels.min() < 0 or labels.max() >= classes or not class_mask.gather(1, labels[:, None]).all():
        raise DataError(f"every label must be one of its row's possible classes, from 0 to {classes - 1}")
    return labels


def checked_probs(probs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, classes) float64 probabilities, of two classes or more, and labels as of ``checked_targets``."""
    probs = probs.detach().to("cpu", torch.float64)
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise DataError(f"probs must be (rows, classes) of two classes or more, got {tuple(probs.shape)}")
    labels = checked_targets(labels, torch.ones_like(probs, dtype=torch.bool))
    check_finite(probs, "probs")
    if (probs < 0).any() or ((probs.sum(1) - 1).abs() > _SUM_TOLERANCE).any():
        raise DataError("each row of probs must be at least 0 and sum to 1: pass probabilities, not logits")
    return probs, labels
