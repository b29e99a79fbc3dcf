"""A loaded artifact and the answers to many inputs, in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.answers.written import Detail, Shown
from laplora.errors import ConfigError, LaploraError, NonFiniteError, warn

if TYPE_CHECKING:  # torch takes seconds to load, which help and completion need not wait for
    from laplora.answers.prediction import Prediction
    from laplora.artifact.folder import Artifact
    from laplora.decisions.wanted import Wanted
    from laplora.predictor import Predictor
    from laplora.prompts.rows import EncodedRow

#: Rows that are answered together, in batches of like length: as many whoever answers them, so that figures are equal.
WINDOW = 256


@dataclass(frozen=True)
class How:
    """How inputs are answered.

    Attributes:
        predictive: name of the predictive; None is the recommended one.
        batch_size: rows of a batch, at most; truncate: whether inputs that are too long are cut.
        wanted: what decisions are made for, a target risk, or by answered label, or costs; None: the artifact's.
        detail: which fields of an answer are written (``laplora.answers.written.Shown``).
        variance: whether the posterior's spread is, also where the predictive has none.
    """

    predictive: str | None = None
    batch_size: int = 16
    truncate: bool = False
    wanted: Wanted | None = None
    detail: Detail = "short"
    variance: bool = False

    @property
    def recorded(self) -> dict[str, Any]:
        """Itself as JSON values: finished parts are of it alone."""
        of_costs = getattr(self.wanted, "model_dump", None)
        return vars(self) | {"wanted": of_costs() if of_costs else self.wanted}

    @property
    def shown(self) -> Shown:
        """Which fields of an answer are written."""
        return Shown(self.detail, variance=self.variance)


def read(artifact: str | Path, how: How, bases: Sequence[str], progress: Callable[[str], None] | None) -> Artifact:
    """Return an artifact that has the predictive that is asked for, fetched where it lies elsewhere.

    Args:
        bases: base models that one at an address may have (``laplora.artifact.allowed_bases``).

    Raises:
        ArtifactError: none that can be used; ConfigError: a base model that nobody allowed, or no such predictive.
    """
    from laplora.answers.explaining import nothing_accepted_of
    from laplora.artifact.fetched import FetchRules, local_artifact
    from laplora.artifact.folder import read_artifact
    from laplora.predictive.kinds import SPREADLESS

    loaded = read_artifact(local_artifact(artifact, progress=progress, rules=FetchRules(tuple(bases))).absolute())
    known = loaded.manifest.servable
    if how.predictive is not None and how.predictive not in known:
        raise ConfigError(f"artifact {loaded.name!r} has no predictive {how.predictive!r}: it has {', '.join(known)}")
    name = next((name for name in known if name == how.predictive), loaded.manifest.recommended.predictive)
    if how.variance and "laplace" not in known and name in SPREADLESS:
        raise ConfigError(f"--variance: {name} has no spread, and artifact {loaded.name!r} has no adapter's posterior")
    if nothing := nothing_accepted_of(loaded, name, how.wanted):
        warn(nothing.message)
    return loaded


def load(artifact: Artifact, device: str, progress: Callable[[str], None] | None = None) -> Predictor:
    """Return an artifact's predictor.

    Raises:
        LaploraError: as ``Predictor.load``; ConfigError: its content is another by now.
    """
    from laplora.models.quiet import quiet_loading

    with quiet_loading():
        from laplora.predictor import Predictor

        predictor = Predictor.load(artifact.path, device=device, progress=progress)
    if predictor.artifact.digest != artifact.digest:
        raise ConfigError(f"artifact {artifact.name!r} was replaced while rows were answered: run again")
    return predictor


def answer_all(
    predictor: Predictor, inputs: Sequence[Mapping[str, Any] | LaploraError], how: How
) -> list[Prediction | LaploraError]:
    """Return an answer for each input, in order, or the error of one that has none.

    Args:
        inputs: fields by name, or why there are none, which is returned.
    """
    answers: list[Prediction | LaploraError | None] = []
    rows: list[EncodedRow] = []
    for fields in inputs:
        try:
            if isinstance(fields, LaploraError):
                raise fields
            rows.append(predictor.encode(fields, truncate=how.truncate))
            answers.append(None)
        except LaploraError as error:
            answers.append(error)
    answered = iter(_answers(predictor, rows, how))
    return [next(answered) if one is None else one for one in answers]


def _answers(predictor: Predictor, rows: Sequence[EncodedRow], how: How) -> list[Prediction | LaploraError]:
    """Return an answer per row, or the error of one without a finite answer.

    If one answer is not finite, the rows are answered in halves to find it: 16 more calls for one in 256.
    """
    from laplora.predictive.kinds import SPREADLESS

    most = predictor.batch_tokens
    try:
        also = ("laplace",) if how.variance and (how.predictive or predictor.recommended) in SPREADLESS else ()
        each = predictor.predict_all(rows, how.predictive, batch_size=how.batch_size, most_tokens=most, also=also)
        return [*predictor.decided(each, how.wanted)]
    except NonFiniteError:
        if len(rows) == 1:
            return [NonFiniteError("the model has no finite answer to this input: change it or leave it out")]
        middle = len(rows) // 2
        return [*_answers(predictor, rows[:middle], how), *_answers(predictor, rows[middle:], how)]
