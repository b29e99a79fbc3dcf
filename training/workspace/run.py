"""A run: its configuration with the data, tokenizer and device that every job of it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from filelock import FileLock

from laplora.models.base import BaseSpec, load_base_model
from laplora.prompts.rows import Batch, EncodedRow, collate, encode
from laplora.prompts.templates import render
from training.config import RunConfig
from training.data.section import Example, Splits
from training.workspace.finite import check_finite


@dataclass(frozen=True)
class Run:
    """A configuration with its data and tokenizer loaded.

    Attributes:
        location: folder or hub id of the base model.
        label_ids: token id of each label.
        lock: keeps other processes out of the run's folder while this lives.
    """

    config: RunConfig
    splits: Splits
    location: str
    tokenizer: Any
    label_ids: tuple[int, ...]
    device: torch.device
    lock: FileLock | None = None

    @property
    def class_count(self) -> int:
        """Number of labels."""
        return len(self.label_ids)

    def encode(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Return examples as token rows, cut at the run's limit."""
        task = self.splits.task
        rows = []
        for example in examples:
            prompt, count = render(task.template, example.fields, task.labels)
            rows.append(encode(self.tokenizer, prompt, count, max_tokens=self.config.max_tokens, truncate=True))
        return rows

    def collate(self, rows: Sequence[EncodedRow]) -> Batch:
        """Return rows as one batch on the run's device."""
        batch = collate(rows, class_count=self.class_count, pad_token_id=self.tokenizer.pad_token_id)
        return batch.to(self.device)

    def load_base(self) -> Any:
        """Return the base model as this run uses it.

        Raises:
            ModelError: a base that cannot be loaded or is not covered.
            NonFiniteError: a base whose weights hold NaN or infinity.
        """
        spec = base_spec(self.config)
        model = load_base_model(self.location, spec, device=self.device, dequantize=self.config.base.dequantize).model
        check_finite(model, spec.model)
        return model


def base_spec(config: RunConfig) -> BaseSpec:
    """Return the configured base model."""
    base = config.base
    return BaseSpec(base.model, base.revision, base.quantization, base.dtype)
