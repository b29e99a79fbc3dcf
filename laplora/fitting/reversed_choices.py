"""Temperature scaling of two orders of a question's choices: as the data has them, and in reverse.

A model that answers with the letter of a choice also judges its place (``laplora.prompts.option_order``). The average
of two orders is less sure than each of them, so it takes a temperature of its own: that of the mixture, inside the
average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from laplora.classifier import Classifier
from laplora.fitting.calibrate import Calibrated
from laplora.fitting.outputs import SplitOutputs
from laplora.fitting.progress import Progress
from laplora.fitting.settings import FitSettings
from laplora.linearised import contrast_mean
from laplora.predictive.kinds import fit_predictive_temperature
from laplora.prompts.examples import Example
from laplora.prompts.option_order import restore_contrasts, reverse_choices
from laplora.prompts.rows import Batch


def reversed_temperature(
    classifier: Classifier,
    settings: FitSettings,
    outputs: SplitOutputs,
    calibration: Sequence[Example],
    progress: Progress,
) -> float | None:
    """Return the temperature of the average over two orders, fitted on the calibration rows by one more pass over them.

    None where rows have no choices, or without temperature scaling.
    """
    if not settings.predictives.temperature or not classifier.template.takes_choices:
        return None
    split = outputs.split
    other = reversed_means(classifier, calibration, settings.laplace.batch_size, progress)
    means = torch.stack([split.projected.contrast_mean.double(), other])
    return fit_predictive_temperature(means, split.labels, split.class_mask)


@torch.no_grad()
def reversed_means(
    classifier: Classifier, examples: Sequence[Example], batch_size: int, progress: Progress
) -> torch.Tensor:
    """Return (rows, classes - 1) float64 contrasts of prompts with the choices in reverse, in the rows' own order."""
    title = "calibration rows, choices in reverse"

    def answered(batch: Batch) -> torch.Tensor:
        return contrast_mean(classifier.readout.scores(classifier.model, batch).logits.double()).cpu()

    parts, order = classifier.over_batches(
        in_reverse(examples), batch_size, answered, lambda items: progress.track(items, title)
    )
    restored, _ = restore_contrasts(torch.cat(parts)[order], None, [example.class_count for example in examples])
    return restored


def in_reverse(examples: Sequence[Example]) -> list[Example]:
    """Return rows with their choices in reverse; their labels are as they were."""
    return [replace(example, fields=reverse_choices(example.fields)) for example in examples]


def with_reversed(calibrated: Calibrated, temperature: float | None) -> Calibrated:
    """Return what an artifact records, with a temperature of two orders beside that of one; None changes nothing."""
    record = calibrated.predictives.get("temperature")
    if temperature is None or record is None:
        return calibrated
    update = record.model_copy(update={"reversed_temperature": temperature})
    return calibrated.model_copy(update={"predictives": {**calibrated.predictives, "temperature": update}})
