"""Keeps the outputs of a fit's passes, so that a stopped fit continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from laplora.execution.progress import Progress
from laplora.features.expert_passes import ExpertPasses
from laplora.features.outputs import Outputs
from laplora.prompts.examples import Example

#: Tensors and what was noted beside them, by name.
Kept = tuple[dict[str, torch.Tensor], dict[str, str]]
#: Under which name the passes that no adapter changes are kept.
FROZEN_PASSES = "frozen_passes"
#: Most bytes of them that are kept.
_MOST_BYTES = 1 << 30


class Store(Protocol):
    """Keeps named tensors; gives them back to a later fit from the same model, rows and settings."""

    def read(self, name: str, made_from: str = "") -> Kept | None:
        """Return what was kept under a name and made from this; None where there is none."""

    def write(
        self, name: str, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str], made_from: str = ""
    ) -> None:
        """Keep tensors and notes under a name, in place of what was there."""


class Forgetful:
    """Keeps nothing."""

    def read(self, name: str, made_from: str = "") -> Kept | None:
        """Return None."""
        return None

    def write(
        self, name: str, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str], made_from: str = ""
    ) -> None:
        """Drop them."""


def kept_outputs(passes: ExpertPasses, rows: Sequence[Example], store: Store, progress: Progress) -> Outputs:
    """Return what heads read of labelled rows; passes that the store has are not made again."""
    encoder = passes.encoder.name if passes.encoder else None
    made_from = digest(rows_digest(rows), passes.names, encoder)
    kept = store.read(FROZEN_PASSES, made_from)
    if kept is not None and (not passes.of_rows.answers or "log_probs/zero_shot" in kept[0]):
        return _outputs_of(kept[0])
    result = passes.outputs(rows, progress, "labelled rows")
    tensors = {"class_mask": result.class_mask} | {f"log_probs/{name}": each for name, each in result.log_probs.items()}
    for source, blocks in result.features.items():
        tensors |= {f"features/{source}/{name}": each.contiguous() for name, each in blocks.items()}
    if sum(each.nbytes for each in tensors.values()) <= _MOST_BYTES:
        store.write(FROZEN_PASSES, tensors, {}, made_from)
    return result


def _outputs_of(tensors: Mapping[str, torch.Tensor]) -> Outputs:
    log_probs, features = dict[Any, torch.Tensor](), dict[Any, dict[str, torch.Tensor]]()
    for name, each in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "log_probs":
            log_probs[rest] = each
        elif kind == "features":
            source, _, block = rest.partition("/")
            features.setdefault(source, {})[block] = each
    return Outputs(tensors["class_mask"], log_probs, features)


def rows_digest(examples: Sequence[Example]) -> str:
    """Return the digest of examples, in order."""
    parts = list[Any]()
    for e in examples:
        present = [] if e.present is None else [list(e.present)]
        group = [] if e.group is None else [{"group": e.group}]
        soft = [] if e.target is None else [{"target": list(e.target)}]
        parts.append([dict(e.fields), e.label, e.class_count, *present, *group, *soft])
    return digest(*parts)


def digest(*parts: object) -> str:
    """Return the SHA-256 of JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
