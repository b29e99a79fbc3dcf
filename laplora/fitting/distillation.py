"""The fast predictive's covariance, distilled from those of calibration rows, training rows and further inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from laplora.artifact.manifest import DistilledRecord
from laplora.classifier import Classifier
from laplora.fitting.progress import Progress
from laplora.fitting.projected import ProjectedSplit, project_split, split_of, split_tensors
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import Store, rows_digest
from laplora.fitting.variants import variants
from laplora.jacobians.states import join_states, spread_layers
from laplora.models.decoder_layers import decoder_layers
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.predictive.cross_fitting import fold_rows
from laplora.predictive.distilled import DistilledCovariance, distill
from laplora.predictive.distilled_error import log_error
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
    """Return the layers whose states ``fast`` looks at; none without it."""
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
    layers = watched_layers(classifier, settings)
    if not layers or calibration.states is None:
        return None
    inputs = further_inputs(train, unlabelled, settings)
    examples = [example for example, _ in inputs]
    parts = [calibration, *_passes(classifier, posterior, examples, layers, settings, store, progress)]
    count = len(calibration.labels)
    groups = torch.tensor([*range(count), *(count + origin for _, origin in inputs)])
    distilled, _ = _distilled(posterior, prior, parts, groups, layers, settings.seed, calibration.class_mask)
    return replace(distilled, held_out=distilled.held_out[:count])


def distill_cross_fitted(
    classifier: Classifier,
    posterior: Posterior,
    prior: Prior,
    rows: Sequence[Example],
    unlabelled: Sequence[Example],
    out_of_fold: torch.Tensor,
    settings: FitSettings,
    store: Store,
    progress: Progress,
) -> Distilled | None:
    """Return what is distilled from the posterior of an adapter that was trained on all rows; None where it is off.

    One fold's rows stand for calibration rows, which have no variants. A row's ``held_out`` is its out-of-fold
    covariance, times the share of the exact trace that is predicted from inputs without the row.

    Args:
        out_of_fold: (rows, classes - 1, classes - 1), the covariances under the prior by the adapters without the rows.
    """
    layers = watched_layers(classifier, settings)
    if not layers:
        return None
    varied, first = (part.tolist() for part in fold_rows(len(rows), settings.calibration.folds, settings.seed)[0])
    order = [*first, *varied]
    inputs = further_inputs([rows[i] for i in varied], unlabelled, settings, labelled=False)
    origins = [varied[i] if i < len(varied) else len(rows) + i for _, i in inputs]
    examples = [*(rows[i] for i in order), *(example for example, _ in inputs)]
    parts = _passes(classifier, posterior, examples, layers, settings, store, progress)
    masks = torch.cat([part.class_mask for part in parts])[: len(first)]
    groups = torch.tensor([*order, *origins])
    distilled, exact = _distilled(posterior, prior, parts, groups, layers, settings.seed, masks)
    predicted, truth, wanted = (c.diagonal(dim1=1, dim2=2).sum(1) for c in (distilled.held_out, exact, out_of_fold))
    share = predicted[: len(rows)] / truth[: len(rows)].clamp_min(torch.finfo(torch.float64).tiny)
    in_order = torch.empty_like(wanted)
    in_order[torch.tensor(order)] = share
    return replace(distilled, held_out=out_of_fold * in_order[:, None, None])


def _distilled(
    posterior: Posterior,
    prior: Prior,
    parts: Sequence[ProjectedSplit],
    groups: torch.Tensor,
    layers: tuple[int, ...],
    seed: int,
    class_mask: torch.Tensor,
) -> tuple[Distilled, torch.Tensor]:
    """Return what is distilled from inputs, the rows of ``class_mask`` first, and their exact covariances."""
    precisions = block_precisions(prior, posterior.blocks)
    exact = torch.cat([posterior.covariance(part.projected, precisions) for part in parts])
    states = join_states([part.states.after(layers) for part in parts if part.states is not None])
    distilled = distill(states, exact, groups, layers, seed, class_mask)
    count = len(class_mask)
    error = log_error(distilled.held_out[:count], exact[:count], class_mask)
    record = DistilledRecord(inputs=len(groups), error=error)
    return Distilled(distilled.predictor, record, distilled.held_out), exact


def further_inputs(
    train: Sequence[Example], unlabelled: Sequence[Example], settings: FitSettings, *, labelled: bool = True
) -> list[tuple[Example, int]]:
    """Return training rows, then the user's inputs, then variants, each with the number of the row that it varies.

    Args:
        labelled: whether the training rows themselves are wanted too.
    """
    wanted = settings.predictives.fast
    draw = random.Random(f"{settings.seed}/distillation")

    def drawn(available: int) -> list[int]:
        return sorted(draw.sample(range(available), min(wanted, available)))

    rows = [(train[i], i) for i in drawn(len(train))] if labelled else []
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
