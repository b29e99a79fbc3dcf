"""Every labelled row as a calibration row: answered by an adapter that was trained without the row's fold.

So no label is held back from the adapter that is served. Thresholds are therefore fitted on answers of adapters with
fewer labels than it has (``docs/training.md``, "All labels for training").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from laplora.classifier import Classifier
from laplora.errors import ConfigError, DataError
from laplora.execution.progress import Progress
from laplora.features.store import Store, rows_digest
from laplora.fitting.familiarity import familiar_layers, forward_states, ood_score_to
from laplora.fitting.passes import fit_curvature
from laplora.fitting.projected import ProjectedSplit, project_split, split_of, split_tensors
from laplora.jacobians.blocks import Block
from laplora.posterior.base import Posterior, ProjectedJacobians
from laplora.predictive.cross_fitting import fold_rows
from laplora.predictive.lora_weights import Weights, in_place, lora_parameters
from laplora.prompts.examples import Example
from laplora.prompts.groups import row_groups
from laplora.settings import FitSettings


@dataclass(frozen=True)
class FoldedPosterior:
    """One posterior a fold (``laplora.posterior.base.Covariances``), for the rows of the fold, which it did not see.

    Their bases differ, so nothing of them is averaged.

    Attributes:
        posteriors: of adapters that cover the same blocks.
        kept: how many coordinates each of them keeps of a row.
    """

    posteriors: tuple[Posterior, ...]
    kept: tuple[int, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self.posteriors[0].blocks

    @property
    def rows(self) -> int:
        """Training rows summed, the mean over the folds, rounded."""
        return round(sum(posterior.rows for posterior in self.posteriors) / len(self.posteriors))

    @property
    def structure(self) -> str:
        return self.posteriors[0].structure

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts, (batch, classes - 1, classes - 1) float64, nats squared.

        A precision is the prior's, which knows nothing of the rows: all folds have the same one.

        Args:
            projected: of ``fold_together``, or some of its rows.
        """
        rows, contrasts = projected.contrast_mean.shape
        covariance = torch.zeros(rows, contrasts, contrasts, dtype=torch.float64, device=projected.rest.device)
        assert projected.fold is not None
        for number, (posterior, kept) in enumerate(zip(self.posteriors, self.kept, strict=True)):
            places = (projected.fold == number).nonzero()[:, 0]
            if len(places):
                part = projected.take(places)
                covariance[places] = posterior.covariance(
                    replace(part, kept=part.kept[..., :kept], fold=None), precisions
                )
        return covariance


def fold_together(
    posteriors: Sequence[Posterior], parts: Sequence[ProjectedJacobians], rows: Sequence[torch.Tensor]
) -> tuple[FoldedPosterior, ProjectedJacobians]:
    """Return the posteriors of the folds as one, and their rows together in the order of their numbers.

    Args:
        parts: each fold's rows as its posterior projects them; rows: their numbers, which are 0 to rows - 1.

    Raises:
        DataError: row numbers that are not those, or another number of them than of projected rows.
    """
    order = torch.cat(list(rows))
    sizes = [len(part.contrast_mean) for part in parts]
    if sizes != [len(part) for part in rows] or not torch.equal(order.sort().values, torch.arange(sum(sizes))):
        raise DataError(f"folds of {sizes} rows do not have the numbers 0 to {sum(sizes) - 1}, each once")
    kept = tuple(part.kept.shape[-1] for part in parts)
    padded = [
        replace(part, kept=F.pad(part.kept, (0, max(kept) - size)), fold=torch.full((count,), number))
        for number, (part, size, count) in enumerate(zip(parts, kept, sizes, strict=True))
    ]
    return FoldedPosterior(tuple(posteriors), kept), ProjectedJacobians.joined(padded).take(order.argsort())


@dataclass(frozen=True)
class FoldAdapter:
    """An adapter that was trained on all folds but one.

    Attributes:
        weights: by block name.
        store: what keeps its passes.
    """

    weights: Weights
    store: Store


@dataclass(frozen=True)
class FoldedRows:
    """Labelled rows as the adapters without them see them.

    Attributes:
        posterior: of every fold's adapter; split: the rows, in their order.
        parts: each fold's posterior, and the fold's rows as it sees them.
        ood_scores: (rows,), of each row to the rows that trained its fold's adapter; None where familiarity is off.
    """

    posterior: FoldedPosterior
    split: ProjectedSplit
    parts: list[tuple[Posterior, ProjectedSplit]]
    ood_scores: torch.Tensor | None


def folded_rows(
    classifier: Classifier,
    adapters: Sequence[FoldAdapter],
    rows: Sequence[Example],
    blocks: tuple[Block, ...],
    settings: FitSettings,
    progress: Progress,
) -> FoldedRows:
    """Return all rows as the adapters see them that were not trained on them.

    The curvature of a fold's adapter is over the rows that trained it.

    Args:
        adapters: in the order of ``cross_fitting.fold_rows`` by the settings' folds and seed and the rows' groups.
        blocks: that the posteriors cover.

    Raises:
        ConfigError: another number of adapters than of folds.
    """
    groups = row_groups(classifier.template, classifier.labels, rows)
    folds = fold_rows(len(rows), settings.calibration.folds, settings.seed, groups)
    if len(adapters) != len(folds):
        raise ConfigError(f"{len(folds)} folds need an adapter each, {len(adapters)} were given")
    posteriors: list[Posterior] = []
    parts: list[ProjectedSplit] = []
    scores: list[torch.Tensor] = []
    for number, (adapter, (fit, held)) in enumerate(zip(adapters, folds, strict=True), 1):
        seen, held_out = ([rows[i] for i in part.tolist()] for part in (fit, held))
        with in_place(lora_parameters(classifier.model), adapter.weights):
            progress.say(f"fold {number} of {len(folds)}: {len(seen)} rows trained, {len(held_out)} calibrate")
            posterior, _ = fit_curvature(classifier, seen, blocks, settings, adapter.store, progress)
            title = f"rows of fold {number}"
            parts.append(_held_out(classifier, posterior, held_out, settings, adapter.store, progress, title))
            if layers := familiar_layers(classifier, settings):
                ood_score, _ = ood_score_to(classifier, seen, settings, adapter.store, progress)
                size = settings.laplace.batch_size
                scores.append(ood_score.of(forward_states(classifier, held_out, layers, size, progress)))
        posteriors.append(posterior)
    together = parts[0].together
    of_rows = groups.repeat_interleave(together)
    places = [held for _, held in fold_rows(len(of_rows), len(folds), settings.seed, of_rows)]
    order = torch.cat(places).argsort()
    posteriors_together, projected = fold_together(posteriors, [part.projected for part in parts], places)
    logits, mask, labels, mass = (
        torch.cat([getattr(part, name) for part in parts])[order]
        for name in ("logits", "class_mask", "labels", "label_mass")
    )
    in_order = torch.cat([held for _, held in folds]).argsort()
    last = torch.cat([part.last for part in parts if part.last is not None])[in_order]
    split = ProjectedSplit(projected, logits, mask, labels, mass, together=together, last=last, groups=groups)
    ood_scores = torch.cat(scores)[in_order] if scores else None
    return FoldedRows(posteriors_together, split, list(zip(posteriors, parts, strict=True)), ood_scores)


def _held_out(
    classifier: Classifier,
    posterior: Posterior,
    rows: Sequence[Example],
    settings: FitSettings,
    store: Store,
    progress: Progress,
    title: str,
) -> ProjectedSplit:
    """Return a fold's rows as its adapter's posterior sees them; what is kept is read."""
    made_from = rows_digest(rows)
    kept = store.read("held_out", made_from)
    if kept is not None:
        return split_of(kept[0])
    split = project_split(classifier, posterior, rows, progress, title, batch_size=settings.laplace.batch_size)
    store.write("held_out", split_tensors(split), {}, made_from)
    return split
