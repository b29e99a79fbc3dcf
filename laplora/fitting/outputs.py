"""What the adapters that a fit's predictives average over give on one split: means and covariances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from laplora.classifier import Classifier
from laplora.fitting.members import MemberAdapter, MemberFit, dropout_record
from laplora.fitting.progress import Progress
from laplora.fitting.projected import ProjectedSplit, project_split
from laplora.fitting.settings import FitSettings
from laplora.jacobians.contrasts import covered_blocks
from laplora.posterior.base import Covariances, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.binary import binary_means
from laplora.predictive.kinds import PREDICTIVES, Corrected, Members, PredictiveName
from laplora.predictive.member_adapters import dropout_weights, in_place, lora_parameters
from laplora.predictive.member_outputs import Member, MemberSet, Wanted, member_outputs
from laplora.predictive.shift import Shift, tempering
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch


@dataclass(frozen=True)
class Fitted:
    """One adapter's posterior under its prior, and a split's rows as it sees them, in the split's row order.

    Of out-of-fold rows it is that of several adapters (``laplora.posterior.folded``), one prior for all.
    """

    posterior: Covariances
    prior: Prior
    projected: ProjectedJacobians

    def covariance(self, prior: Prior | None = None) -> torch.Tensor:
        """Return the contrasts' covariance, (rows, classes - 1, classes - 1) float64, under its prior by default."""
        return self.posterior.covariance(self.projected, block_precisions(prior or self.prior, self.posterior.blocks))


@dataclass(frozen=True)
class Ensemble:
    """The ensemble's adapters beside the trained one, and their fits: one each, or none without posteriors."""

    adapters: tuple[MemberAdapter, ...] = ()
    fits: tuple[MemberFit, ...] = ()


@dataclass(frozen=True)
class SplitOutputs:
    """Everything that a fit's predictives need of one split.

    Attributes:
        split: the trained adapter's.
        fitted: the trained adapter, then the ensemble's others where they have posteriors.
        means: by kind of members (members, rows, classes - 1), of the kinds that are run without posteriors.
        distilled: (rows, classes - 1, classes - 1), the covariances that ``fast`` predicts; None without it.
        moved: by kind of members (rows, classes - 1), what the calibration rows' labels add to the log probabilities.
        temperature: of the predictive ``conditioned``.
        seen: whether the adapter was trained on these rows, which then cannot say that it could be surer.
        counts: by kind of members how many answer what is served, where one of them answered each of these rows.
    """

    split: ProjectedSplit
    fitted: tuple[Fitted, ...]
    means: dict[Members, torch.Tensor]
    distilled: torch.Tensor | None = None
    moved: Mapping[Corrected, torch.Tensor] = field(default_factory=dict)
    temperature: float = 1.0
    seen: bool = False
    counts: Mapping[Members, int] = field(default_factory=dict)

    def moments(
        self, name: PredictiveName, priors: Sequence[Prior] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a predictive's means (members, rows, classes - 1) and covariances, under its priors by default."""
        spec = PREDICTIVES[name]
        single = self.split.projected.contrast_mean[None]
        if spec.members == "conditioned":
            return single + self.temperature * self.moved[spec.members], None
        if not spec.covariance:
            return (single if spec.members == "single" else self.means[spec.members]), None
        if spec.members == "distilled":
            return single, self._distilled(priors)[None]
        if spec.members == "laplace_conditioned":
            covariance = self.fitted[0].covariance(priors[0] if priors else None)
            moved = tempering(covariance, self.split.class_mask) * self.moved[spec.members]
            return single + moved, covariance[None]
        chosen = self.fitted[:1] if spec.members == "single" else self.fitted
        covariances = [f.covariance(priors[i] if priors else None) for i, f in enumerate(chosen)]
        return torch.stack([f.projected.contrast_mean for f in chosen]), torch.stack(covariances)

    def _distilled(self, priors: Sequence[Prior] | None) -> torch.Tensor:
        """Return what ``fast`` predicts; under another prior, times the exact covariance's change of size."""
        assert self.distilled is not None
        if priors is None:
            return self.distilled
        trained = self.fitted[0]
        sizes = [c.diagonal(dim1=1, dim2=2).sum(1) for c in (trained.covariance(priors[0]), trained.covariance())]
        return self.distilled * (sizes[0] / sizes[1].clamp_min(torch.finfo(torch.float64).tiny))[:, None, None]


def corrected(outputs: SplitOutputs, shifts: Mapping[Corrected, Shift]) -> SplitOutputs:
    """Return outputs with what labels of other rows add to the log probabilities, by kind of members."""
    split = outputs.split
    moved: dict[Corrected, torch.Tensor] = {}
    for kind, shift in shifts.items():
        assert split.last is not None
        added = shift.of(split.last)
        moved[kind] = binary_means(added[None])[0] if split.together > 1 else added
    temperature = shifts["conditioned"].temperature if "conditioned" in shifts else 1.0
    return replace(outputs, moved=moved, temperature=temperature)


def split_outputs(
    classifier: Classifier,
    settings: FitSettings,
    trained: Fitted,
    split: ProjectedSplit,
    ensemble: Ensemble,
    examples: Sequence[Example],
    progress: Progress,
    title: str,
) -> SplitOutputs:
    """Return what every member says of a split, whose rows the trained adapter has seen already."""
    others, size = [], settings.laplace.batch_size
    for adapter, fit in zip(ensemble.adapters, ensemble.fits, strict=bool(ensemble.fits)):
        with in_place(lora_parameters(classifier.model), adapter.weights):
            projected = project_split(
                classifier, fit.posterior, examples, progress, f"{title}, step {fit.step}", batch_size=size
            )
        others.append(Fitted(fit.posterior, fit.choice.prior, projected.projected))
    means = forward_means(classifier, settings, ensemble.adapters, examples, progress, f"{title}, members")
    return SplitOutputs(split, (trained, *others), means)


def forward_means(
    classifier: Classifier,
    settings: FitSettings,
    adapters: Sequence[MemberAdapter],
    examples: Sequence[Example],
    progress: Progress,
    title: str,
) -> dict[Members, torch.Tensor]:
    """Return by kind (members, rows, classes - 1) the contrasts of the members that run without posteriors."""
    model = classifier.model
    weights: dict[Members, Sequence[Mapping[str, torch.Tensor]]] = {}
    if adapters:
        weights["checkpoints"] = [adapter.weights for adapter in adapters]
    if record := dropout_record(classifier, settings):
        blocks = covered_blocks(model, classifier.readout)
        masks = dropout_weights(model, blocks, p=record.probability, members=record.members, seed=record.seed)
        weights["dropout"] = masks
    if not weights:
        return {}
    members = MemberSet(
        model=model,
        parameters=lora_parameters(model),
        readout=classifier.readout,
        trained=Member(),
        checkpoints=tuple(Member(w) for w in weights.get("checkpoints", ())),
        dropout=tuple(Member(w) for w in weights.get("dropout", ())),
    )
    wanted: set[Wanted] = {(kind, False) for kind in weights}

    def answered(batch: Batch) -> dict[Members, torch.Tensor]:
        return dict(member_outputs(members, batch, wanted).means)

    size = settings.laplace.batch_size
    parts, order = classifier.over_batches(examples, size, answered, lambda items: progress.track(items, title))
    found = {kind: torch.cat([part[kind] for part in parts], 1)[:, order] for kind in weights}
    if classifier.readout.likelihood == "bernoulli":
        return {kind: binary_means(means) for kind, means in found.items()}
    return found
