"""What the reference tests are about: a model, data, and the dense truth. Not in a conftest: there are several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dense_reference as dense
from tiny_models import Task


@dataclass(frozen=True)
class Problem:
    """A tiny model, a training set on which its factors have full rank, and the dense truth about both."""

    model: Any
    task: Task
    truth: dense.Truth
