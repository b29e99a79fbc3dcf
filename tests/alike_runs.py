"""Whether two training runs have the same results, as processes that share the rows of one promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

#: Of trained weights, whose largest is about 0.3: gradients are summed in another order in float32, and AdamW divides
#: small ones by their size. 4e-7 was seen.
WEIGHTS = 2e-5
#: Of a loss or a likelihood, nats.
NATS = 1e-5


def read(path: Path) -> Any:
    """Return a JSON file's value."""
    return json.loads(path.read_text())


def check_alike(one: Path, other: Path) -> None:
    """Check that two run folders hold the same adapter and the same curve, to rounding."""
    mine, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=WEIGHTS)
    curves = [read(folder / "training_log.json") for folder in (one, other)]
    assert len(curves[0]) == len(curves[1]) > 2
    for record, twin in zip(*curves, strict=True):
        assert record["step"] == twin["step"]
        for name in {"loss", "eval_loss"} & record.keys():
            assert twin[name] == pytest.approx(record[name], abs=NATS)


def check_measured_alike(one: Path, other: Path) -> None:
    """Check that two run folders have the same figures of every predictive, to rounding."""
    mine, theirs = (read(folder / "report" / "evaluation.json") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for method in mine:
        assert theirs[method]["nll"] == pytest.approx(mine[method]["nll"], abs=1e-4), method
