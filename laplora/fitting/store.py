"""Where a fit keeps what it has computed, so that one that was stopped continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from laplora.prompts.examples import Example

#: Tensors and what was noted beside them, by name.
Kept = tuple[dict[str, torch.Tensor], dict[str, str]]


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


def rows_digest(examples: Sequence[Example]) -> str:
    """Return the digest of examples, in order."""
    return digest(*([dict(e.fields), e.label, e.class_count, *_present(e), *_group(e)] for e in examples))


def _present(example: Example) -> list[list[int]]:
    return [] if example.present is None else [list(example.present)]


def _group(example: Example) -> list[dict[str, str]]:
    return [] if example.group is None else [{"group": example.group}]


def digest(*parts: object) -> str:
    """Return the SHA-256 of JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
