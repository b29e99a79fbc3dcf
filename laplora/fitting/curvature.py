"""One adapter's posterior: its curvature over the training rows, and the rows that fill in for many classes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from laplora.classifier import Classifier
from laplora.fitting.passes import RowPass, many_classes
from laplora.fitting.progress import Progress
from laplora.fitting.projected import project_split, split_of, split_tensors
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import Store
from laplora.jacobians.blocks import Block
from laplora.jacobians.many_classes import ManyClasses
from laplora.posterior.base import Posterior, ProjectedJacobians
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior
from laplora.prompts.examples import Example


def fit_curvature(
    classifier: Classifier,
    examples: Sequence[Example],
    blocks: tuple[Block, ...],
    settings: FitSettings,
    store: Store,
    progress: Progress,
) -> tuple[Posterior, float]:
    """Return the curvature over the rows, and their log-likelihood (summed, nats)."""
    laplace = settings.laplace
    structure = StructureSettings(
        structure=laplace.structure,
        rank=laplace.rank,
        oversampling=laplace.oversampling,
        joint_rank=laplace.joint_rank,
        seed=settings.seed,
        basis_dtype=getattr(torch, laplace.factor_dtype),
    )
    run_pass = RowPass(classifier, examples, blocks, settings, store, progress)
    fitted = fit_posterior(structure, blocks, run_pass)
    posterior = classifier.workers.told(lambda: fitted)  # directions that were computed twice may differ by a sign
    if many := many_classes(settings, classifier):
        reference = _reference(classifier, posterior, examples, many, settings.seed, store, progress)
        posterior = ManyClassPosterior(posterior, reference, many.directions)
    return posterior, run_pass.log_likelihood


def _reference(
    classifier: Classifier,
    posterior: Posterior,
    examples: Sequence[Example],
    many: ManyClasses,
    seed: int,
    store: Store,
    progress: Progress,
) -> ProjectedJacobians:
    """Return a few training rows with Jacobians of all their contrasts, one row at a time."""
    mark = repr((many, seed))
    if kept := store.read("reference", mark):
        return split_of(kept[0]).projected
    draw = random.Random(f"{seed}/reference")
    rows = [examples[i] for i in sorted(draw.sample(range(len(examples)), min(many.reference_rows, len(examples))))]
    split = project_split(classifier, posterior, rows, progress, "rows with every contrast", batch_size=1)
    store.write("reference", split_tensors(split), {}, mark)
    return split.projected
