"""An artifact's recorded answers: read, and compared with the loaded model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laplora.answers.prediction import Prediction
from laplora.artifact.manifest import GOLDEN, POSTERIOR
from laplora.artifact.report_page import REPORT_PAGE
from laplora.errors import ArtifactCorruptError, GoldenMismatchError

#: Variances below this, nats squared, count as this: they change no answer, and 0 has no logarithm.
LEAST_VARIANCE = 1e-6
#: Most answers of a file. Each is a pass of every predictive before the artifact serves.
MAX_ANSWERS = 64

#: The sources of golden inputs: made of template and labels, the user's, or calibration rows that the user released.
GoldenSource = Literal["synthetic", "given", "calibration"]


class GoldenAnswer(BaseModel):
    """One recorded answer."""

    model_config = ConfigDict(frozen=True)

    inputs: dict[str, Any] = Field(description="the template's fields")
    map_probs: list[float] | None = Field(description="null: the model has no answer of its own")
    probs: list[float] = Field(description="the recommended predictive's")
    predictives: dict[str, list[float]] = Field(description="probabilities of the other predictives")
    logit_mean: list[float] = Field(description="of the centred logits, nats; not compared")
    logit_variance: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        None, description="of each possible label's centred logit, nats squared; null: not recorded"
    )
    familiarity: float | None = Field(None, ge=0, le=1, description="null: not recorded")


class Golden(BaseModel):
    """An artifact's recorded answers, and how far new ones may be from them: anything larger would prove nothing."""

    model_config = ConfigDict(frozen=True)

    tolerance: float = Field(ge=0, lt=1, description="absolute, on every probability")
    variance_tolerance: float = Field(
        ge=0,
        le=3,
        description="absolute, on the logarithm of every variance. On the mean over n answers it is this over the "
        "square root of n, since rounding moves each answer another way. In bfloat16 0.57 was seen between kernels",
    )
    familiarity_tolerance: float = Field(0.5, ge=0, lt=1, description="absolute, on every familiarity")
    source: GoldenSource | None = Field(None, description="where the inputs are from; null: not recorded")
    answers: list[GoldenAnswer] = Field(min_length=1, max_length=MAX_ANSWERS)


def read_golden(folder: Path) -> Golden:
    """Return an artifact's recorded answers.

    Raises:
        ArtifactCorruptError: a file that does not hold recorded answers, or holds none that prove anything.
    """
    try:
        return Golden.model_validate_json((folder / GOLDEN).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise not_recorded(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except OSError as error:
        raise not_recorded(type(error).__name__) from None


def what_leaves(folder: Path) -> str:
    """Return in words what of the data an artifact holds, for whoever saves or pushes it.

    Raises:
        ArtifactCorruptError: as ``read_golden``.
    """
    golden = read_golden(folder)
    texts = {
        "synthetic": "no text of a row",
        "given": f"the texts of the {len(golden.answers)} golden inputs that were given",
        "calibration": f"THE TEXTS OF {len(golden.answers)} CALIBRATION ROWS (its golden inputs)",
        None: f"the texts of {len(golden.answers)} golden inputs, which may be rows",
    }[golden.source]
    what = "the adapter, the posterior" if (folder / POSTERIOR).is_file() else "heads on a model as it is"
    page = "; and a report page as it was made" if (folder / REPORT_PAGE).is_file() else ""
    return (
        f"it holds {what}, the prompt template, the labels, scores and hidden states of labelled rows, and "
        f"{texts}{page}"
    )


def not_recorded(reason: str) -> ArtifactCorruptError:
    """Return the error of a golden file that cannot be replayed."""
    return ArtifactCorruptError(
        f"{GOLDEN} does not hold answers that can be replayed ({reason}): package the run again"
    )


def golden_entry(inputs: Mapping[str, Any], answer: Prediction) -> dict[str, Any]:
    """Return one answer as a golden file records it."""
    arrays = answer.arrays
    return GoldenAnswer(
        inputs=dict(inputs),
        map_probs=None if arrays.map_probs is None else arrays.map_probs.tolist(),
        probs=arrays.probs.tolist(),
        predictives={name: probs.tolist() for name, probs in arrays.calibrated_probs.items()},
        logit_mean=answer.logit_mean.tolist(),
        logit_variance=None if answer.logit_variance is None else answer.logit_variance.tolist(),
        familiarity=answer.familiarity,
    ).model_dump()


def verify_answers(answers: Sequence[Prediction], golden: Golden) -> None:
    """Compare answers with the recorded ones, their variances and familiarity too where those are recorded.

    Raises:
        GoldenMismatchError: a probability, a familiarity or the logarithm of a variance further from the recorded one
            than its tolerance.
    """
    moved = []
    for number, (answer, recorded) in enumerate(zip(answers, golden.answers, strict=True)):
        arrays = answer.arrays
        given = {"map_probs": arrays.map_probs, "probs": arrays.probs, **arrays.calibrated_probs}
        for name, want in {"map_probs": recorded.map_probs, "probs": recorded.probs, **recorded.predictives}.items():
            of_answer = given.get(name)
            got, want = [] if of_answer is None else of_answer.tolist(), want or []
            gaps = [abs(g - w) for g, w in zip(got, want, strict=False)]
            # NaN is no match either
            if len(got) != len(want) or not all(gap <= golden.tolerance for gap in gaps):
                gap = max(gaps, default=math.nan)
                raise _mismatch(
                    f"golden answer {number}: {name} differs by {gap:.4f}, more than {golden.tolerance}: expected "
                    f"{_shown(want)}, got {_shown(got)}"
                )
        if recorded.familiarity is not None:
            found = math.nan if answer.familiarity is None else answer.familiarity
            if not abs(found - recorded.familiarity) <= golden.familiarity_tolerance:
                raise _mismatch(
                    f"golden answer {number}: familiarity is {found:.4g}, expected {recorded.familiarity:.4g} within "
                    f"{golden.familiarity_tolerance:.2g}"
                )
        if recorded.logit_variance is not None:
            variance = [] if answer.logit_variance is None else answer.logit_variance.tolist()
            moved.append(_moved(number, recorded.logit_variance, variance, golden.variance_tolerance))
    limit = golden.variance_tolerance / math.sqrt(max(1, len(moved)))
    mean = sum(moved) / max(1, len(moved))
    if not abs(mean) <= limit:
        raise _mismatch(
            f"golden answers: the variances of all {len(moved)} together are {math.exp(mean):.3g} times the recorded "
            f"ones, expected within a factor of {math.exp(limit):.3g}"
        )


def _moved(number: int, want: Sequence[float], got: Sequence[float], tolerance: float) -> float:
    """Return the mean change of the logarithm of an answer's variances, where each is within the tolerance."""
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
