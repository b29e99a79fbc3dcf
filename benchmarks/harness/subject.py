"""The timed model: an artifact's model, adapter and posterior, in any number format and with any label count."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

from benchmarks.harness.provenance import ARTIFACT
from laplora.artifact.adapted import load_adapted
from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import ADAPTER_FOLDER
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model, locate_base
from laplora.predictive.batch_outputs import AdaptedModel
from laplora.prompts.rows import Batch
from laplora.readouts.label_tokens import LabelTokens

Format = Literal["float32", "bfloat16", "nf4"]


def load_subject(number_format: Format, device: str = "cpu") -> AdaptedModel:
    """Return the default artifact's model and posterior; ``nf4`` stays packed, the others hold the plain base."""
    manifest = read_artifact(ARTIFACT).manifest
    spec = BaseSpec(
        manifest.base_model,
        manifest.revision,
        "nf4" if number_format == "nf4" else "none",
        "float32" if number_format == "float32" else "bfloat16",
    )
    where = torch.device(device)
    base = load_base_model(locate_base(spec), spec, device=where, dequantize=False).model
    model = attach_adapter(base, ARTIFACT / ADAPTER_FOLDER)
    return load_adapted(ARTIFACT, manifest, model, where)


def with_classes(adapted: AdaptedModel, classes: int) -> AdaptedModel:
    """Return the same with other labels: the posterior of an adapter that leaves ``lm_head`` alone knows none."""
    return dataclasses.replace(adapted, readout=LabelTokens(tuple(range(100, 100 + classes))))


def random_batch(adapted: AdaptedModel, rows: int, tokens: int, *, padded: bool = False) -> Batch:
    """Return rows of random tokens, for as many classes as the labels.

    Args:
        padded: every other row has a quarter of its tokens missing, so that there is a mask.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(200, 40000, (rows, tokens), generator=generator) % adapted.model.config.vocab_size
    mask = torch.ones_like(ids)
    if padded:
        mask[::2, : tokens // 4] = 0
    device = next(adapted.model.parameters()).device
    possible = torch.ones(rows, adapted.readout.class_count, dtype=torch.bool)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    parts: tuple[Any, ...] = (ids * mask, mask, positions, possible)
    return Batch(*(p.to(device) for p in parts))
