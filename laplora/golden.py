"""An artifact's recorded answers: read, and compared with what the loaded model says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laplora.errors import ArtifactCorruptError, GoldenMismatchError
from laplora.manifest import GOLDEN
from laplora.prediction import Prediction


@dataclass(frozen=True)
class GoldenAnswer:
    """One recorded answer.

    Attributes:
        inputs: the template's fields.
        probs: by what they are (``map_probs``, ``probs``, or a predictive's name) the recorded probabilities.
    """

    inputs: dict[str, Any]
    probs: dict[str, list[float]]


def read_golden(folder: Path) -> tuple[list[GoldenAnswer], float]:
    """Return an artifact's recorded answers and their tolerance, absolute on every probability.

    Raises:
        ArtifactCorruptError: a file that does not hold recorded answers, or holds none that prove anything.
    """
    try:
        golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
        tolerance = float(golden["tolerance"])
        answers = [
            GoldenAnswer(dict(entry["inputs"]), {name: _numbers(values) for name, values in _recorded(entry)})
            for entry in golden["answers"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_recorded(error) from None
    if not answers or not 0 <= tolerance < 1:
        raise ArtifactCorruptError(
            f"{GOLDEN} has {len(answers)} answers and the tolerance {tolerance}: expected one answer or more and a "
            "tolerance below 1, otherwise a replay proves nothing"
        )
    return answers, tolerance


def not_recorded(error: Exception) -> ArtifactCorruptError:
    """Return the error of a golden file that cannot be replayed."""
    return ArtifactCorruptError(
        f"{GOLDEN} does not hold recorded answers ({type(error).__name__}): package the run again"
    )


def golden_entry(inputs: Mapping[str, Any], answer: Prediction) -> dict[str, Any]:
    """Return one answer as a golden file records it."""
    return {
        "inputs": dict(inputs),
        "map_probs": answer.map_probs,
        "probs": answer.probs,
        "predictives": answer.calibrated_probs,
        "logit_mean": answer.logit_mean,
        "logit_variance": answer.logit_variance,
    }


def verify_answers(answers: Sequence[Prediction], recorded: Sequence[GoldenAnswer], tolerance: float) -> None:
    """Compare answers with the recorded ones.

    Raises:
        GoldenMismatchError: a probability further from the recorded one than the tolerance.
    """
    for number, (answer, golden) in enumerate(zip(answers, recorded, strict=True)):
        said = {"map_probs": answer.map_probs, "probs": answer.probs, **answer.calibrated_probs}
        for name, want in golden.probs.items():
            got = said.get(name, [])
            gaps = [abs(g - w) for g, w in zip(got, want, strict=False)]
            if len(got) != len(want) or not all(gap <= tolerance for gap in gaps):  # NaN is no match either
                gap = max(gaps, default=math.nan)
                raise GoldenMismatchError(
                    f"golden answer {number}: {name} differs by {gap:.4f}, more than {tolerance}: the loaded model "
                    "is not the one that was measured (other weights, quantization or package versions)"
                )


def _recorded(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, entry[name]) for name in ("map_probs", "probs")] + list(entry.get("predictives", {}).items())


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]
