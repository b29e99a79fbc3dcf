"""The experts of a model with an adapter: what stands on the adapter, and the heads that do not look at it.

Their labelled rows are the training rows and then the calibration rows. What stands on the adapter is honest on the
latter alone. No group is in both (``without_twins``), and the calibration rows' folds are those that calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from laplora.classifier import Classifier
from laplora.experts.adapter import AsGiven
from laplora.experts.base import Blocks, Expert, FeatureSource, Outputs
from laplora.experts.laplace import Laplace, logged
from laplora.experts.of_head import HeadExpert
from laplora.features.expert_passes import ExpertPasses
from laplora.fitting.calibrate import out_of_fold, prior_without
from laplora.fitting.evaluation import outputs_of
from laplora.fitting.fit import Fit
from laplora.fitting.fitted_heads import fit_experts
from laplora.fitting.outputs import Fitted, SplitOutputs
from laplora.fitting.progress import Progress
from laplora.fitting.rows import shared_folds
from laplora.fitting.settings import FitSettings
from laplora.linearised import Likelihood, class_log_probs
from laplora.prompts.examples import Example


def adapter_experts(fit: Fit, trained: int) -> dict[str, Expert]:
    """Return ``adapter``, ``laplace`` and what labels correct, by name.

    Args:
        trained: training rows, in which each ``held_out`` is NaN.
    """
    split, settings = fit.calibration, fit.settings
    outputs = SplitOutputs(split, Fitted(fit.posterior, fit.served.prior, split.projected))
    read = outputs_of_split(outputs)
    likelihood: Likelihood = "categorical" if split.together == 1 else "bernoulli"
    laplace = out_of_fold(settings, outputs, prior_without(settings, outputs), names=("laplace",))["laplace"]

    def among_all(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values.new_full((trained, values.shape[1]), torch.nan), values])

    logs = logged(laplace.probs, split.class_mask, split.together)
    return {
        "adapter": AsGiven("adapter", among_all(read.log_probs["adapter"]), likelihood),
        "laplace": Laplace(among_all(logs), likelihood),
        **{kind: replace(one, held_out=among_all(one.held_out)) for kind, one in fit.conditioned.items()},
    }


@dataclass(frozen=True)
class Heads:
    """Experts that do not look at an adapter, with the passes that they read."""

    passes: ExpertPasses
    experts: Mapping[str, HeadExpert]


def fit_beside(
    passes: ExpertPasses,
    train: Sequence[Example],
    calibration: Sequence[Example],
    settings: FitSettings,
    progress: Progress,
) -> Heads:
    """Return the heads that settings name beside an adapter, which all labelled rows train.

    Raises:
        DataError: rows that no head can be fitted on.
    """
    outputs = passes.outputs((*train, *calibration), progress, "labelled rows")
    folds = settings.calibration.folds
    labelled = shared_folds(passes.classifier, train, calibration, folds, settings.seed)
    return Heads(passes, fit_experts(passes.names, outputs, labelled, settings.seed, progress))


def outputs_of_rows(
    classifier: Classifier, fit: Fit, heads: Heads | None, examples: Sequence[Example], progress: Progress
) -> Outputs:
    """Return what all experts of a fit read of inputs."""
    size, posterior, prior = fit.settings.laplace.batch_size, fit.posterior, fit.served.prior
    found = outputs_of(classifier, size, posterior, prior, {}, None, examples, progress, "inputs")
    read = outputs_of_split(found.outputs)
    if heads is None:
        return read
    return replace(read, features={**read.features, **heads.passes.outputs(examples, progress, "inputs").features})


def outputs_of_split(outputs: SplitOutputs) -> Outputs:
    """Return what the experts of an adapter read of rows."""
    split, several = outputs.split, outputs.split.together
    assert split.last is not None
    states: dict[FeatureSource, Blocks] = {"last_state": {"last": split.last}}
    covariance = outputs.fitted.covariance()
    if several == 1:
        logs = class_log_probs(split.logits, split.class_mask)
        return Outputs(split.class_mask, {"adapter": logs}, states, covariance)
    logits = (split.logits[:, 1] - split.logits[:, 0]).double().view(-1, several)
    # The contrast of a binary row has half the variance of its label's logit.
    variances = 2 * covariance.view(-1, several)
    mask = torch.ones(logits.shape, dtype=torch.bool)
    return Outputs(mask, {"adapter": logits}, states, torch.diag_embed(variances))
