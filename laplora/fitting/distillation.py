"""The fast predictive's covariance, distilled from those of calibration rows, training rows and further inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.artifact.manifest import DistilledRecord
from laplora.classifier import Classifier
from laplora.fitting.progress import Progress
from laplora.fitting.projected import ProjectedSplit, project_split, split_of, split_tensors
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import Store, rows_digest
from laplora.fitting.variants import variants
from laplora.jacobians.states import decoder_layers, join_states, spread_layers
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.predictive.distilled import DistilledCovariance, distill
from laplora.predictive.distilled_error import FALSE_ALARMS, log_error
from laplora.prompts.examples import Example

#: Inputs whose passes are kept together: what a stopped fit loses at most.
_PART = 128


@dataclass(frozen=True)
class Distilled:
    """What was distilled.

    Attributes:
        held_out: (rows, classes - 1, classes - 1), the calibration rows' covariances, each predicted from inputs that
            do not hold it.
    """

    predictor: DistilledCovariance
    record: DistilledRecord
    held_out: torch.Tensor


def watched_layers(classifier: Classifier, settings: FitSettings) -> tuple[int, ...]:
    """Return the layers whose states are looked at; none without the fast predictive."""
    return spread_layers(len(decoder_layers(classifier.model))) if settings.predictives.fast else ()


def distill_covariance(
    classifier: Classifier,
    posterior: Posterior,
    prior: Prior,
    train: Sequence[Example],
    unlabelled: Sequence[Example],
    calibration: ProjectedSplit,
    settings: FitSettings,
    store: Store,
    progress: Progress,
) -> Distilled | None:
    """Return what is distilled from a posterior under its served prior; None where it is off."""
    if calibration.states is None:
        return None
    layers = watched_layers(classifier, settings)
    inputs = further_inputs(train, unlabelled, settings)
    examples = [example for example, _ in inputs]
    parts = [calibration, *_passes(classifier, posterior, examples, layers, settings, store, progress)]
    count = len(calibration.labels)
    groups = torch.tensor([*range(count), *(count + origin for _, origin in inputs)])
    precisions = block_precisions(prior, posterior.blocks)
    exact = torch.cat([posterior.covariance(part.projected, precisions) for part in parts])
    states = join_states([part.states for part in parts if part.states is not None])
    distilled = distill(states, exact, groups, layers, settings.seed, calibration.class_mask)
    held_out = distilled.held_out[:count]
    error = log_error(held_out, exact[:count], calibration.class_mask)
    record = DistilledRecord(inputs=len(groups), error=error, false_alarms=FALSE_ALARMS)
    return Distilled(distilled.predictor, record, held_out)


def further_inputs(
    train: Sequence[Example], unlabelled: Sequence[Example], settings: FitSettings
) -> list[tuple[Example, int]]:
    """Return training rows, then the user's inputs, then variants, each with the number of the row that it varies."""
    wanted = settings.predictives.fast
    draw = random.Random(f"{settings.seed}/distillation")

    def drawn(available: int) -> list[int]:
        return sorted(draw.sample(range(available), min(wanted, available)))

    rows = [(train[i], i) for i in drawn(len(train))]
    given = [unlabelled[i] for i in drawn(len(unlabelled))] if unlabelled else []
    made = variants(train, wanted - len(given), settings.seed)
    return rows + [(example, len(train) + i) for i, example in enumerate(given)] + made


def _passes(
    classifier: Classifier,
    posterior: Posterior,
    examples: Sequence[Example],
    layers: tuple[int, ...],
    settings: FitSettings,
    store: Store,
    progress: Progress,
) -> list[ProjectedSplit]:
    """Return the inputs' projected Jacobians and states, part by part; those that are kept are read."""
    parts = []
    for number, start in enumerate(range(0, len(examples), _PART)):
        part = examples[start : start + _PART]
        name, made_from = f"distillation/{number}", f"{rows_digest(part)}/{layers!r}"
        kept = store.read(name, made_from)
        if kept is None:
            title = f"inputs of fast, {start + 1} to {start + len(part)} of {len(examples)}"
            size = settings.laplace.batch_size
            split = project_split(classifier, posterior, part, progress, title, batch_size=size, layers=layers)
            store.write(name, split_tensors(split), {}, made_from)
            parts.append(split)
        else:
            parts.append(split_of(kept[0]))
    return parts
