"""How familiar inputs are: fitted to forward passes of the training rows, with the calibration rows as reference."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.artifact.manifest import FamiliarityRecord
from laplora.classifier import Classifier
from laplora.errors import ModelError, warn
from laplora.execution.progress import Progress
from laplora.familiarity.ood_score import OodScore, fit_ood_score
from laplora.familiarity.percentile import Familiarity, false_alarms, watched_layers
from laplora.features.store import Store, rows_digest
from laplora.fitting.projected import ProjectedSplit, state_tensors, states_of
from laplora.jacobians.states import States, StateTape, decoder_layers, join_states, pooling_of
from laplora.linearised import most_probable
from laplora.prompts.examples import Example, label_tensor
from laplora.prompts.rows import Batch
from laplora.settings import FitSettings

#: Training rows that inputs are compared with, at most; of more, a random part.
_MOST = 4000


@dataclass(frozen=True)
class Familiar:
    """The fitted out-of-distribution score."""

    familiarity: Familiarity
    record: FamiliarityRecord


def familiar_layers(classifier: Classifier, settings: FitSettings) -> tuple[int, ...]:
    """Return the layers whose states are compared; none where familiarity is off.

    Raises ModelError where no list holds the model's layers.
    """
    if not settings.calibration.unfamiliar_rate:
        return ()
    return watched_layers(len(decoder_layers(classifier.model)), ends_alike=classifier.template.ends_alike)


def without_familiarity(classifier: Classifier, rows: int, settings: FitSettings) -> FitSettings:
    """Return settings with familiarity off, and warn, where no layer can be watched or there is one training row."""
    why = None if rows > 1 else "it compares with at least 2 training rows"
    try:
        familiar_layers(classifier, settings)
    except ModelError as error:
        why = str(error)
    if why and settings.calibration.unfamiliar_rate:
        warn(f"familiarity is off: {why}")
        calibration = settings.calibration.model_copy(update={"unfamiliar_rate": 0.0})
        return settings.model_copy(update={"calibration": calibration})
    return settings


def fit_familiar(
    classifier: Classifier,
    train: Sequence[Example],
    calibration: ProjectedSplit,
    settings: FitSettings,
    store: Store,
    progress: Progress,
) -> Familiar | None:
    """Return how familiar inputs are, by the trained adapter's states of the training rows; None where it is off.

    Args:
        calibration: with the states after the layers in question.
    """
    if calibration.states is None or not familiar_layers(classifier, settings):
        return None
    ood_score, rows = ood_score_to(classifier, train, settings, store, progress)
    return familiar_of(classifier, ood_score, rows, ood_score.of(calibration.states), settings)


def warn_of_few(rows: int, settings: FitSettings) -> None:
    """Warn where so few calibration rows cannot tell the share that the flag is to be raised on."""
    wanted = settings.calibration.unfamiliar_rate
    if 0 < wanted < (rate := false_alarms(wanted, rows)):
        warn(
            f"unfamiliar: {rows} calibration rows tell no smaller share than {rate:.2%} of rows like them from none, "
            f"so the flag is raised on up to that, in place of {wanted:g}"
        )


def ood_score_to(
    classifier: Classifier, train: Sequence[Example], settings: FitSettings, store: Store, progress: Progress
) -> tuple[OodScore, int]:
    """Return the out-of-distribution score of training rows, and how many those are."""
    layers = familiar_layers(classifier, settings)
    draw = random.Random(f"{settings.seed}/familiarity")
    rows = [train[i] for i in sorted(draw.sample(range(len(train)), min(_MOST, len(train))))]
    made_from = f"{rows_digest(rows)}/{layers!r}/{classifier.ending_tokens}"
    if kept := store.read("familiarity", made_from):
        states = states_of(kept[0])
    else:
        states = forward_states(classifier, rows, layers, settings.laplace.batch_size, progress)
        store.write("familiarity", state_tensors(states), {}, made_from)
    labels = most_probable(label_tensor(rows, classifier.class_count))
    return fit_ood_score(states, labels, by_logits=not classifier.template.ends_alike), len(rows)


def familiar_of(
    classifier: Classifier, ood_score: OodScore, rows: int, reference: torch.Tensor, settings: FitSettings
) -> Familiar:
    """Return how familiar inputs are.

    Args:
        rows: training rows that inputs are compared with.
        reference: (calibration rows,), scores of rows that the adapter was not trained on.
    """
    rate = false_alarms(settings.calibration.unfamiliar_rate, len(reference))
    tokens = classifier.ending_tokens
    record = FamiliarityRecord(layers=ood_score.layers, tokens=tokens, rows=rows, false_alarms=rate)
    return Familiar(Familiarity(ood_score, reference.sort().values, tokens), record)


@torch.no_grad()
def forward_states(
    classifier: Classifier, examples: Sequence[Example], layers: Sequence[int], batch_size: int, progress: Progress
) -> States:
    """Return what forward passes show of examples, in order."""
    model, readout = classifier.model, classifier.readout
    pooling = pooling_of(readout.side, classifier.ending_tokens)
    title = "training rows, for familiarity"

    def noted(batch: Batch) -> States:
        with StateTape(model, layers, batch.attention_mask, pooling) as tape:
            logits = readout.scores(model, batch).logits
        return tape.states(logits)

    parts, order = classifier.over_batches(examples, batch_size, noted, lambda items: progress.track(items, title))
    return join_states(parts).take(order)
