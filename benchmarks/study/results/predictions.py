"""What the study's job leaves for each task and seed: a result.json and the test rows' predictions beside it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from laplora.errors import DataError
from laplora.metrics.scores import row_nll

_ORDERS = re.compile(r"\b(\d+) option orders\b")


class MethodResult(BaseModel):
    """One method in a result.json: its title, and what it cost."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str
    family: str
    seconds: float
    bytes: int

    @property
    def option_orders(self) -> int | None:
        """The orders that its title has it average, each a forward pass; None for a method of the user's order."""
        match = _ORDERS.search(self.title)
        return int(match[1]) if match else None

    @property
    def shared_title(self) -> str:
        """The title without their number, which differs between tasks: questions with more options have more."""
        return _ORDERS.sub("option orders", self.title)


class SeedResult(BaseModel):
    """A result.json. ``configuration``: what else makes two runs different experiments."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: str
    seed: int
    rows: int
    train_rows: int
    calibration_rows: int
    steps: int
    classes: tuple[str, ...]
    capped: dict[str, Any]
    recommended: str
    recommendation_reason: str
    review_score: str
    methods: dict[str, MethodResult]
    conformal: dict[str, dict[str, dict[str, float]]]
    rankings: dict[str, float | None]
    versions: dict[str, Any]
    hardware: Any
    configuration: dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """One finished task and seed.

    Attributes:
        labels: (rows,) int64; class_mask: (rows, classes) bool.
        probs: method -> (rows, classes) float64, ``map`` and the recommended one among them.
        scores: method -> (rows,) float64, where a method ranks mistakes by another score than its entropy.
        logits: split -> its ``logits``, ``class_mask`` and ``labels``, for calibration and test; empty where only the
            two files were kept.
    """

    result: SeedResult
    labels: torch.Tensor
    class_mask: torch.Tensor
    probs: dict[str, torch.Tensor]
    scores: dict[str, torch.Tensor]
    logits: dict[str, dict[str, torch.Tensor]]

    def losses(self, method: str) -> torch.Tensor:
        """Return (rows,) a method's NLL, nats."""
        return row_nll(self.probs[method], self.labels)

    def mistakes(self, method: str) -> torch.Tensor:
        """Return (rows,) whether a method's answer is wrong."""
        return self.probs[method].argmax(1) != self.labels


def read_predictions(folder: Path) -> Predictions:
    """Return one finished task and seed.

    Raises:
        DataError: files that are damaged, do not fit each other, or lack MAP or the recommended method.
    """
    try:
        result = SeedResult.model_validate_json((folder / "result.json").read_bytes())
        tensors = load_file(folder / "predictions.safetensors")
        labels, class_mask = tensors["labels"].long(), tensors["class_mask"].bool()
    except ValidationError as error:
        fields = ", ".join(".".join(str(part) for part in e["loc"]) for e in error.errors())
        raise DataError(f"{folder / 'result.json'}: bad or missing: {fields}") from None
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{folder / 'predictions.safetensors'} cannot be used: {error}") from None
    probs, scores = (
        {k.removeprefix(head): v.double() for k, v in sorted(tensors.items()) if k.startswith(head)}
        for head in ("probs.", "score.")
    )
    for name, values in probs.items():
        if values.shape != class_mask.shape or len(values) != len(labels) or len(labels) != result.rows:
            raise DataError(
                f"{folder}: {result.rows} rows expected, labels {tuple(labels.shape)}, class_mask "
                f"{tuple(class_mask.shape)}, probs.{name} {tuple(values.shape)}: they must fit each other"
            )
    unknown = sorted(set(probs) - set(result.methods))
    if unknown or not {"map", result.recommended} <= set(probs):
        raise DataError(
            f"{folder}: probs must hold map, the recommended {result.recommended} and only methods of result.json, "
            f"got {sorted(probs)}" + (f" with {unknown} unknown" if unknown else "")
        )
    stored = {split: folder / f"{split}.safetensors" for split in ("calibration", "test")}
    kept = all(path.is_file() for path in stored.values())
    logits = {split: load_file(path) for split, path in stored.items()} if kept else {}
    return Predictions(result, labels, class_mask, probs, scores, logits)


def digest(predictions: Predictions) -> str:
    """Return what tells one experiment from another, the seed left out: SHA-256, hexadecimal."""
    names = {"task", "rows", "train_rows", "calibration_rows", "steps", "classes", "configuration"}
    chosen = predictions.result.model_dump(mode="json", include=names)
    content = hashlib.sha256(json.dumps(without_folders(chosen), sort_keys=True).encode())
    content.update(predictions.labels.numpy().tobytes())
    content.update(predictions.class_mask.numpy().tobytes())
    return content.hexdigest()


def without_folders(value: Any) -> Any:
    """Return a JSON value with absolute paths cut to their last part: they differ between machines."""
    if isinstance(value, dict):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
