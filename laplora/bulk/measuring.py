"""An artifact measured on a file of labelled rows, as POST /evaluate measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.bulk.answering import How, answers, encode
from laplora.errors import ConfigError, DataError, LaploraError, needs

if TYPE_CHECKING:
    import torch

    from laplora.answers.evaluation import MethodRow
    from laplora.answers.labels import Truth
    from laplora.answers.prediction import Prediction
    from laplora.artifact.folder import Artifact
    from laplora.artifact.manifest import Manifest
    from laplora.bulk.answering import Answer
    from laplora.data.labelled import Task
    from laplora.predictor import Predictor
    from laplora.prompts.examples import Example


#: Rows that are answered together, in batches of like length: as many whoever answers them, so that figures are equal.
WINDOW = 256
#: Bins that the noise of an ECE is known for.
BINS = 15
#: Resamples that an interval is of at least, as of POST /evaluate.
FEWEST_RESAMPLES = 10
#: Mistakes from which on their ranking has an interval.
_FEWEST_MISTAKES = 5


@dataclass
class MeasureHow:
    """Bins of the ECE, and resamples and seed of the bootstrap.

    Raises:
        ConfigError: fewer resamples than an interval can be of, and not none.
    """

    bins: int = BINS
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if 0 < self.resamples < FEWEST_RESAMPLES:
            raise ConfigError(
                f"resamples (--resamples) is 0, which leaves the intervals out, or at least {FEWEST_RESAMPLES}, not "
                f"{self.resamples}: 95 % intervals cannot be of so few"
            )


@dataclass(frozen=True)
class Measured:
    """Metrics by method, as POST /evaluate gives them, and the answers in the order of the rows."""

    methods: dict[str, dict[str, Any]]
    predictions: list[Prediction]
    truths: list[Truth]


def task_of(artifact: Artifact) -> Task:
    """Return what rows of an artifact are read by."""
    try:
        from laplora.data.labelled import Task
    except ImportError as error:
        raise needs("training", error) from None
    manifest = artifact.manifest
    return Task(artifact.name, manifest.template.template(), tuple(manifest.labels))


def labelled_examples(data: Path, label_field: str, artifact: Artifact) -> Sequence[Example]:
    """Return a file's rows; DataError: rows that cannot be used, by line."""
    task = task_of(artifact)
    from laplora.data.labelled import read_examples

    return read_examples(data, task, label_field, {}, several=artifact.manifest.likelihood == "bernoulli")


def measured_rows(
    predictor: Predictor,
    examples: Sequence[Example],
    how: How,
    measure_how: MeasureHow,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Return what rows say of an artifact; they are answered ``WINDOW`` at a time.

    Args:
        progress: called with the rows that are answered, and how many there are.

    Raises:
        DataError: rows that cannot be answered, by line.
    """
    asked, problems = [], []
    for example in examples:
        try:
            asked.append(encode(predictor, example.fields, how))
        except LaploraError as error:
            problems.append(f"{example.id}: {error}")
    if problems:
        raise DataError(told_problems(problems))
    answered: list[Answer] = []
    for begin in range(0, len(asked), WINDOW):
        answered += answers(predictor, asked[begin : begin + WINDOW], how)
        if progress is not None:
            progress(len(answered), len(asked))
    manifest = predictor.artifact.manifest
    rows = [numbers_of(manifest, how, *answer) for answer in answered]
    truths = [truth_of(example) for example in examples]
    return Measured(
        measure_rows(manifest, rows, truths, measure_how), [prediction for prediction, _ in answered], truths
    )


def told_problems(problems: Sequence[str]) -> str:
    """Return the first of them, and how many more there are."""
    more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "\n".join(problems[:5]) + more


def truth_of(example: Example) -> Truth:
    """Return the place of the right label; where several may be right, of all of them."""
    return example.label if example.present is None else example.present


def numbers_of(
    manifest: Manifest, how: How, prediction: Prediction, own_order: Prediction | None
) -> dict[str, MethodRow]:
    """Return what figures need of one row's answer, by method."""
    from laplora.answers.evaluation import method_rows

    return method_rows(manifest, how.predictive or manifest.recommended.predictive, prediction, own_order)


def measure_rows(
    manifest: Manifest, rows: Sequence[Mapping[str, MethodRow]], truths: Sequence[Truth], measure_how: MeasureHow
) -> dict[str, dict[str, Any]]:
    """Return the metrics of every method, as POST /evaluate gives them, with what few rows need.

    Args:
        rows: at least one, of ``numbers_of``; truths: of ``truth_of``.
    """
    from laplora.answers.evaluation import measure, questions
    from laplora.answers.labels import LabelNames

    names = LabelNames.of(manifest)
    methods = measure(rows, truths, names=names, how=measure_how)
    for method, metrics in methods.items():
        probs, right = questions([row[method][0] for row in rows], truths, names)
        _add_noise(metrics, probs, right, ece=measure_how.bins == BINS)
    return methods


def _add_noise(metrics: dict[str, Any], probs: torch.Tensor, right: torch.Tensor, *, ece: bool) -> None:
    """Add what few rows need: the exact interval of the accuracy, and which ECE a calibrated model has by chance.

    ``ece_limit`` is passed by one calibrated model in 40, and ``ece_excess`` is the ECE above it; None with other bins
    than ``BINS``. Where there are few mistakes, the intervals of their ranking go: a bootstrap knows too little then.
    """
    from laplora.metrics.noise import calibrated_ece, share_interval

    rows, correct = len(right), int((probs.argmax(1) == right).sum())
    metrics["intervals"]["accuracy"] = list(share_interval(correct, rows))
    if rows - correct < _FEWEST_MISTAKES:
        for name in ("auroc_error", "auprc_error", "aurc", "excess_aurc"):
            metrics["intervals"].pop(name, None)
    limit = calibrated_ece(probs.amax(1), chance=0.025).limit if ece else None
    metrics["ece_limit"] = limit
    metrics["ece_excess"] = None if limit is None else metrics["ece"] - limit
