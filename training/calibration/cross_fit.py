"""Fit with every label: curvature over all rows, then prior, calibrators and thresholds on out-of-fold answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from laplora.classifier import Classifier
from laplora.execution.progress import Progress, Silent
from laplora.features.store import Forgetful, Store
from laplora.fitting.adapted_experts import fit_answering, fit_beside, labelled_rows, possible_conditioning
from laplora.fitting.calibrate import OUT_OF_FOLD
from laplora.fitting.familiarity import familiar_of, ood_score_to
from laplora.fitting.fit import Fit, check_several_labels, many_classes_record, possible
from laplora.fitting.passes import block_weights, fit_curvature, label_rows
from laplora.fitting.projected import Fitted, SplitOutputs
from laplora.jacobians.contrasts import covered_blocks
from laplora.posterior.subset import select_blocks
from laplora.prior.choices import choose_priors, served_choice, squared_distances
from laplora.prompts.examples import Example
from laplora.settings import FitSettings
from training.calibration.fold_adapters import FoldAdapter, folded_rows


def cross_fit_rows(
    classifier: Classifier,
    rows: Sequence[Example],
    folds: Sequence[FoldAdapter],
    settings: FitSettings,
    *,
    initial: Mapping[str, torch.Tensor] | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Return the posterior of a classifier that was trained on all rows, calibrated by adapters that were not.

    Labels condition out of fold: a row's state and answer that its label corrects are those of its fold's adapter.
    These adapters have learned the judged fold's labels (docs/lab-notes.md), so ``conditioned`` is in no pool, and
    never recommended. The adapter's own answers are honest in every row, and their pool is weighed on all.

    Args:
        folds: of ``folded_rows``; initial, store, progress: as of ``laplora.fitting.fit.fit_rows``.

    Raises:
        ConfigError, FactorizationError, NonFiniteError, PriorError: as of the steps.
    """
    progress, store = progress or Silent(), store or Forgetful()
    check_several_labels(classifier, rows, settings)
    settings = possible(classifier, len(rows), settings)
    settings = possible_conditioning(classifier, settings, len(rows))
    blocks = select_blocks(covered_blocks(classifier.model, classifier.readout), settings.laplace.subset)
    posterior, log_likelihood = fit_curvature(classifier, rows, blocks, settings, store, progress)
    everyone, labelled = labelled_rows(classifier, (), rows, settings)
    beside = fit_beside(classifier, everyone, labelled, settings, store, progress)
    answered = folded_rows(classifier, folds, rows, blocks, settings, progress)
    start = None if initial is None else label_rows(initial, classifier)
    distances = squared_distances(block_weights(classifier), blocks, start)
    choices = choose_priors(
        settings.laplace.requested, posterior, answered.split.judged, distances, log_likelihood, answered.posterior
    )
    served = served_choice(settings.laplace.requested, choices)
    judged = Fitted(answered.posterior, served.prior, answered.split.projected)
    familiar = None
    if answered.ood_scores is not None:
        ood_score, count = ood_score_to(classifier, rows, settings, store, progress)
        familiar = familiar_of(classifier, ood_score, count, answered.ood_scores, settings)
    outputs = SplitOutputs(answered.split, judged)
    answering = fit_answering(settings, outputs, labelled, beside, classifier.labels, OUT_OF_FOLD)
    many = many_classes_record(settings, classifier, posterior, served.prior, answered.parts)
    curvature = posterior, tuple(choices), served, log_likelihood, distances, start is not None
    decided = answering.calibrated, answering.scores, answering.fine_tuning
    known = labelled, answering.experts, beside, familiar, answered.split
    return Fit(answering.settings, *curvature, *known, *decided, many)
