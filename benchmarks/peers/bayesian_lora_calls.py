"""bayesian-lora called as its README says, on a subject's rows; nothing in it is changed.

It needs two things from outside: an ``output_callback`` (without one ``jacobian_mean`` reads a global that it does not
define) and tokenizer-like inputs with attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import BatchEncoding

from benchmarks.peers.subject import Subject
from laplora.prompts.rows import EncodedRow


def inputs_of(subject: Subject, rows: Sequence[EncodedRow]) -> BatchEncoding:
    """Return rows as a tokenizer would: padded on the left, no positions."""
    batch = subject.batch(rows)
    return BatchEncoding({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})


def class_logits(subject: Subject) -> Callable[[Any, BatchEncoding], torch.Tensor]:
    """Return the README's forward call, its logits restricted to the class labels."""
    return lambda model, batch: model(**batch).logits[:, -1, list(subject.label_ids)]


def package_jacobian(subject: Subject, rows: Sequence[EncodedRow]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the package's Jacobians (rows, classes, *weight) by parameter, and its logits (rows, classes)."""
    from bayesian_lora.main import jacobian_mean

    ids = list(subject.label_ids)
    with torch.no_grad():
        return jacobian_mean(
            subject.model, inputs_of(subject, rows), output_callback=lambda out: out.logits[:, -1, ids]
        )
