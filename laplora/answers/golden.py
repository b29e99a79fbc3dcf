"""An artifact's recorded answers: read, and compared with what the loaded model says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laplora.answers.prediction import Prediction
from laplora.artifact.manifest import GOLDEN
from laplora.errors import ArtifactCorruptError, GoldenMismatchError

#: How far the logarithm of a variance may move where a file records variances and no tolerance for them, as files did
#: before there was one. In bfloat16 0.57 was seen between kernels, on the answer of the largest variance
#: (docs/lab-notes.md).
DEFAULT_VARIANCE_TOLERANCE = 1.0
#: Largest tolerance that a file may state: a factor of 20.
MAX_VARIANCE_TOLERANCE = 3.0
#: Variances below this, nats squared, count as this: they change no answer, and 0 has no logarithm.
LEAST_VARIANCE = 1e-6
#: Most answers of a file. Each is a pass of every predictive before the artifact serves.
MAX_ANSWERS = 64


@dataclass(frozen=True)
class GoldenAnswer:
    """One recorded answer.

    Attributes:
        inputs: the template's fields.
        probs: by what they are (``map_probs``, ``probs``, or a predictive's name) the recorded probabilities.
        logit_variance: of each possible label's centred logit, nats squared; None where none was recorded.
    """

    inputs: dict[str, Any]
    probs: dict[str, list[float]]
    logit_variance: list[float] | None = None


@dataclass(frozen=True)
class Golden:
    """An artifact's recorded answers.

    Attributes:
        answers: at least one, at most ``MAX_ANSWERS``.
        tolerance: absolute, on every probability.
        variance_tolerance: absolute, on the logarithm of every variance; on the mean of an artifact's n answers it is
            this over the square root of n, since what rounding does to one answer it does not do to the next.
    """

    answers: list[GoldenAnswer]
    tolerance: float
    variance_tolerance: float = DEFAULT_VARIANCE_TOLERANCE


def read_golden(folder: Path) -> Golden:
    """Return an artifact's recorded answers.

    Raises:
        ArtifactCorruptError: a file that does not hold recorded answers, or holds none that prove anything.
    """
    try:
        golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
        recorded = list(golden["answers"])
        tolerance = float(golden["tolerance"])
        variance_tolerance = float(golden.get("variance_tolerance", DEFAULT_VARIANCE_TOLERANCE))
        answers = [
            GoldenAnswer(
                dict(entry["inputs"]),
                {name: _numbers(values) for name, values in _recorded(entry)},
                None if entry.get("logit_variance") is None else _numbers(entry["logit_variance"]),
            )
            for entry in recorded[:MAX_ANSWERS]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_recorded(error) from None
    if len(recorded) > MAX_ANSWERS:
        raise ArtifactCorruptError(
            f"{GOLDEN} has {len(recorded)} answers: expected at most {MAX_ANSWERS}, since all are replayed"
        )
    if not answers or not 0 <= tolerance < 1:
        raise ArtifactCorruptError(
            f"{GOLDEN} has {len(answers)} answers and the tolerance {tolerance}: expected one answer or more and a "
            "tolerance below 1, otherwise a replay proves nothing"
        )
    if not 0 <= variance_tolerance <= MAX_VARIANCE_TOLERANCE:
        raise ArtifactCorruptError(
            f"{GOLDEN} has the variance tolerance {variance_tolerance}: expected 0 to {MAX_VARIANCE_TOLERANCE:g}, "
            "otherwise a replay of variances proves nothing"
        )
    if not all(0 <= v < math.inf for answer in answers for v in answer.logit_variance or []):
        raise ArtifactCorruptError(
            f"{GOLDEN} records a variance that is none (negative, NaN or infinite): package again"
        )
    return Golden(answers, tolerance, variance_tolerance)


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


def verify_answers(answers: Sequence[Prediction], golden: Golden) -> None:
    """Compare answers with the recorded ones, their variances too where those are recorded.

    Raises:
        GoldenMismatchError: a probability, or the logarithm of a variance, further from the recorded one than its
            tolerance.
    """
    moved = []
    for number, (answer, recorded) in enumerate(zip(answers, golden.answers, strict=True)):
        said = {"map_probs": answer.map_probs, "probs": answer.probs, **answer.calibrated_probs}
        for name, want in recorded.probs.items():
            got = said.get(name, [])
            gaps = [abs(g - w) for g, w in zip(got, want, strict=False)]
            # NaN is no match either
            if len(got) != len(want) or not all(gap <= golden.tolerance for gap in gaps):
                gap = max(gaps, default=math.nan)
                raise _mismatch(
                    f"golden answer {number}: {name} differs by {gap:.4f}, more than {golden.tolerance}: expected "
                    f"{_shown(want)}, got {_shown(got)}"
                )
        if recorded.logit_variance is not None:
            moved.append(_moved(number, recorded.logit_variance, answer.logit_variance, golden.variance_tolerance))
    limit = golden.variance_tolerance / math.sqrt(max(1, len(moved)))
    mean = sum(moved) / max(1, len(moved))
    if not abs(mean) <= limit:
        raise _mismatch(
            f"golden answers: the variances of all {len(moved)} together are {math.exp(mean):.3g} times the recorded "
            f"ones, expected within a factor of {math.exp(limit):.3g}"
        )


def _moved(number: int, want: Sequence[float], got: Sequence[float] | None, tolerance: float) -> float:
    """Return the mean change of the logarithm of an answer's variances.

    Raises:
        GoldenMismatchError: a change beyond the tolerance, another number of variances, or NaN.
    """
    got = got or []
    changes = [
        math.log(max(g, LEAST_VARIANCE) / max(w, LEAST_VARIANCE)) if math.isfinite(g) else math.nan
        for g, w in zip(got, want, strict=False)
    ]
    if len(got) != len(want) or not all(abs(change) <= tolerance for change in changes):
        raise _mismatch(
            f"golden answer {number}: logit_variance differs by more than a factor of {math.exp(tolerance):.3g}: "
            f"expected {_shown(want)}, got {_shown(got)}"
        )
    return sum(changes) / max(1, len(changes))


def _shown(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values[:8]) + (", ...]" if len(values) > 8 else "]")


def _mismatch(what: str) -> GoldenMismatchError:
    return GoldenMismatchError(
        f"{what}. The loaded model is not the one that was measured (other weights, quantization, posterior, prior or "
        "package versions)"
    )


def _recorded(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, entry[name]) for name in ("map_probs", "probs")] + list(entry.get("predictives", {}).items())


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]
