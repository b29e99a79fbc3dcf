"""An artifact measured on a file of labelled rows, as POST /evaluate measures it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.commands.answering import How, answers, encode
from laplora.commands.console import needs, say
from laplora.errors import DataError, LaploraError

if TYPE_CHECKING:
    import torch

    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor
    from laplora.prompts.examples import Example


#: Bins that the noise of an ECE is known for.
BINS = 15
#: Mistakes from which on their ranking has an interval.
_FEWEST_MISTAKES = 5


@dataclass
class MeasureHow:
    """Bins of the ECE, and resamples and seed of the bootstrap."""

    bins: int = BINS
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """Metrics by method, as POST /evaluate gives them, and the answers in the order of the rows."""

    methods: dict[str, dict[str, Any]]
    predictions: list[Prediction]
    truths: list[int | tuple[int, ...]]


def labelled_examples(data: Path, label_field: str, predictor: Predictor) -> Sequence[Example]:
    """Return a file's rows; DataError: rows that cannot be used, by line."""
    try:
        from training.data.examples import Task
        from training.data.files import read_examples
    except ImportError as error:
        raise needs("training", error) from None
    manifest = predictor.artifact.manifest
    task = Task(predictor.artifact.name, manifest.template.template(), tuple(manifest.labels))
    return read_examples(data, task, label_field, {}, several=manifest.likelihood == "bernoulli")


def measured_rows(predictor: Predictor, examples: Sequence[Example], how: How, measure_how: MeasureHow) -> Measured:
    """Return what rows say of an artifact.

    Raises:
        DataError: rows that cannot be answered, by line.
    """
    from service.scoring.evaluation import measure, method_rows, questions
    from service.scoring.labels import LabelNames

    manifest, name = predictor.artifact.manifest, how.predictive or predictor.recommended
    asked, problems = [], []
    for example in examples:
        try:
            asked.append(encode(predictor, example.fields, how))
        except LaploraError as error:
            problems.append(f"{example.id}: {error}")
    if problems:
        more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError("\n".join(problems[:5]) + more)
    answered = answers(predictor, asked, how, _watched)
    rows = [method_rows(manifest, name, prediction, own_order) for prediction, own_order in answered]
    truths = [example.label if example.present is None else example.present for example in examples]
    names = LabelNames.of(manifest)
    methods = measure(rows, truths, names=names, how=measure_how)
    for method, metrics in methods.items():
        probs, right = questions([row[method][0] for row in rows], truths, names)
        _add_noise(metrics, probs, right, ece=measure_how.bins == BINS)
    return Measured(methods, [prediction for prediction, _ in answered], truths)


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


def _watched(batches: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yield batches, and say about ten times how far it is."""
    step = max(1, -(-len(batches) // 10))
    for done, index in enumerate(batches, 1):
        yield index
        if done % step == 0 or done == len(batches):
            say(f"rows: batch {done} of {len(batches)}")
