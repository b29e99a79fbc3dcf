"""Fit: curvature over the training rows, then prior, calibrators and thresholds on the calibration rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.answers.review_scores import ReviewScores
from laplora.artifact.head_files import KeptRows
from laplora.artifact.manifest import ManyClassesRecord
from laplora.classifier import Classifier
from laplora.errors import ConfigError, DataError
from laplora.execution.progress import Progress, Silent
from laplora.experts.base import Expert, Labelled
from laplora.experts.of_head import HeadExpert
from laplora.features.store import Forgetful, Store
from laplora.fitting.adapted_experts import (
    Heads,
    fit_answering,
    fit_beside,
    labelled_rows,
    possible_conditioning,
)
from laplora.fitting.calibrate import Calibrated
from laplora.fitting.familiarity import Familiar, familiar_layers, fit_familiar, warn_of_few, without_familiarity
from laplora.fitting.passes import block_weights, fit_curvature, label_rows, many_classes
from laplora.fitting.projected import Fitted, ProjectedSplit, SplitOutputs, project_split
from laplora.fitting.rows import check_independent, check_ordered
from laplora.jacobians.contrasts import covered_blocks
from laplora.pool.fine_tuning import FineTuning
from laplora.pool.pool import Pool
from laplora.pool.served import POOLED, ServedExperts
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.posterior.subset import select_blocks
from laplora.predictive.kinds import PredictiveName
from laplora.prior.choices import choose_priors, served_choice, squared_distances
from laplora.prior.search import PriorChoice
from laplora.prompts.examples import Example
from laplora.settings import FitSettings


@dataclass(frozen=True)
class Fit:
    """The result of a fit.

    Attributes:
        choices: every prior choice that is reported; served: the one of them that answers.
        log_likelihood: of the training rows, summed, nats.
        squared_distances: (blocks,) float64, of the trained weights from the prior's centre.
        labelled: the rows that some expert knows: the training rows, where heads are fitted beside the adapter, and
            then the calibration rows.
        experts: by name the ways to answer, with their honest log probabilities of these rows: ``adapter``,
            ``temperature``, ``conditioned``, ``laplace``, the heads beside, and ``pooled`` of more than one.
        heads: those beside with their passes; None without them.
        centred: whether that centre is the initial adapter; else it is zero.
        calibration: the calibration rows as the posterior sees them.
        fine_tuning: what it gained; None without a head beside.
        many_classes: how it was fitted from fewer directions than contrasts; None where every one was computed.
    """

    settings: FitSettings
    posterior: Posterior
    choices: tuple[PriorChoice, ...]
    served: PriorChoice
    log_likelihood: float
    squared_distances: torch.Tensor
    centred: bool
    labelled: Labelled
    experts: Mapping[str, Expert]
    heads: Heads | None
    familiar: Familiar | None
    calibration: ProjectedSplit
    calibrated: Calibrated
    scores: Mapping[PredictiveName, ReviewScores]
    fine_tuning: FineTuning | None
    many_classes: ManyClassesRecord | None = None

    @property
    def answering(self) -> ServedExperts:
        """The heads that an artifact has with their pool: one that the pool left out goes, unless it is what answers.

        ``conditioned`` stays: it takes no pass of its own.
        """
        heads = {name: of for name, of in self.experts.items() if isinstance(of, HeadExpert)}
        pool = self.experts.get(POOLED)
        weights = pool.weights if isinstance(pool, Pool) else {}
        kept = {"conditioned", self.calibrated.recommended.predictive, *(weights or heads)}
        return ServedExperts(
            {name: of for name, of in heads.items() if name in kept}, weights, likelihood=self.labelled.likelihood
        )

    def kept_rows(self) -> KeptRows:
        """Return the labelled rows as an artifact keeps them."""
        heads = {name: of for name in self.answering.heads if isinstance(of := self.experts[name], HeadExpert)}
        pool = pool if isinstance(pool := self.experts.get(POOLED), Pool) else None
        return KeptRows.of(heads, self.labelled, {"adapter": self.experts["adapter"].held_out}, pool)


def check_several_labels(classifier: Classifier, rows: Sequence[Example], settings: FitSettings) -> None:
    """Refuse, where several labels may be right, training and calibration rows with one label each (DataError).

    Also the guarantee ``upper_bound``, whose bound is on independent mistakes (ConfigError).
    """
    if classifier.readout.likelihood != "bernoulli":
        return
    if any(row.present is None for row in rows):
        raise DataError(
            "the model has a probability for each label (problem_type multi_label_classification), and the rows have "
            "one label each: give lists of labels, to laplora.fit or to python -m training fit --adapter"
        )
    if settings.calibration.guarantee == "upper_bound":
        raise ConfigError(
            "guarantee upper_bound takes one label a row, since labels of a row err together: use empirical"
        )


def possible(classifier: Classifier, rows: int, settings: FitSettings) -> FitSettings:
    """Return the settings without what a classifier, or so few training rows, cannot have.

    Raises ConfigError for an order of labels that have none.
    """
    check_ordered(classifier, settings.calibration.ordered)
    return without_familiarity(classifier, rows, settings)


def fit_rows(
    classifier: Classifier,
    train: Sequence[Example],
    calibration: Sequence[Example],
    settings: FitSettings,
    *,
    initial: Mapping[str, torch.Tensor] | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Return the posterior of a classifier over its training rows, calibrated on others.

    Args:
        train: rows that the adapter was trained on; calibration: rows that it was not trained on.
        initial: the LoRA weights by block name before training, the prior's centre; None: zero.
        store: keeps the passes over the rows, so that a fit that was stopped continues.

    Raises:
        ConfigError, FactorizationError, NonFiniteError, PriorError: as of the steps.
    """
    progress, store = progress or Silent(), store or Forgetful()
    check_several_labels(classifier, [*train, *calibration], settings)
    check_independent(calibration, settings.calibration.guarantee)
    settings = possible(classifier, len(train), settings)
    settings = possible_conditioning(classifier, settings, len(calibration))
    laplace = settings.laplace
    size = laplace.batch_size
    blocks = select_blocks(covered_blocks(classifier.model, classifier.readout), laplace.subset)
    posterior, log_likelihood = fit_curvature(classifier, train, blocks, settings, store, progress)
    everyone, labelled = labelled_rows(classifier, train, calibration, settings)
    beside = fit_beside(classifier, everyone, labelled, settings, store, progress)
    layers = familiar_layers(classifier, settings)
    title, tokens = "calibration rows", classifier.ending_tokens
    split = project_split(
        classifier, posterior, calibration, progress, title, batch_size=size, layers=layers, tokens=tokens
    )
    warn_of_few(len(calibration), settings)
    familiar = fit_familiar(classifier, train, split, settings, store, progress)
    start = None if initial is None else label_rows(initial, classifier)
    distances = squared_distances(block_weights(classifier), blocks, start)
    choices = choose_priors(laplace.requested, posterior, split.judged, distances, log_likelihood)
    served = served_choice(laplace.requested, choices)
    outputs = SplitOutputs(split, Fitted(posterior, served.prior, split.projected))
    answering = fit_answering(settings, outputs, labelled, beside, classifier.labels)
    many = many_classes_record(settings, classifier, posterior, served.prior, [(posterior, split)])
    curvature = posterior, tuple(choices), served, log_likelihood, distances, start is not None
    decided = answering.calibrated, answering.scores, answering.fine_tuning
    return Fit(answering.settings, *curvature, labelled, answering.experts, beside, familiar, split, *decided, many)


def many_classes_record(
    settings: FitSettings,
    classifier: Classifier,
    posterior: Posterior,
    prior: Prior,
    seen: Sequence[tuple[Posterior, ProjectedSplit]],
) -> ManyClassesRecord | None:
    """Return how a task of many classes was fitted; None where every contrast was computed.

    Args:
        posterior: what is served; seen: the calibration rows as that one, or as those of folds see them.
    """
    many = many_classes(settings, classifier)
    if many is None or not isinstance(posterior, ManyClassPosterior):
        return None
    precisions = block_precisions(prior, posterior.blocks)
    filled_in = torch.cat(
        [
            judge.filled_in_share(split.projected, split.logits, split.class_mask, precisions)
            for judge, split in seen
            if isinstance(judge, ManyClassPosterior)
        ]
    )
    errors = posterior.reference_errors(precisions)
    largest = float(errors.max()) if len(errors) else None
    return ManyClassesRecord(**many.model_dump(), filled_in=float(filled_in.mean()), largest_error=largest)
