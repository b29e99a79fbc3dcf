"""What the adapters that a run's predictives average over give on one split: means and covariances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from laplora.jacobians.contrasts import covered_blocks
from laplora.posterior.base import Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.predictive.kinds import PREDICTIVES, Members, PredictiveName
from laplora.predictive.member_adapters import dropout_weights, in_place, lora_parameters, read_weights
from laplora.predictive.member_outputs import Member, MemberSet, Wanted, member_outputs
from training.calibration.members import MemberFit, dropout_record
from training.calibration.projected import ProjectedSplit, project_split
from training.data.examples import Example
from training.workspace.members import check_kept, member_folder, member_steps
from training.workspace.run import Run
from training.workspace.runtime import batched


@dataclass(frozen=True)
class Fitted:
    """One adapter's posterior under its prior, and a split's rows as it sees them, in the split's row order."""

    posterior: Posterior
    prior: Prior
    projected: ProjectedJacobians

    def covariance(self, prior: Prior | None = None) -> torch.Tensor:
        """Return the contrasts' covariance, (rows, classes - 1, classes - 1) float64, under its prior by default."""
        return self.posterior.covariance(self.projected, block_precisions(prior or self.prior, self.posterior.blocks))


@dataclass(frozen=True)
class SplitOutputs:
    """Everything that a run's predictives need of one split.

    Attributes:
        split: the trained adapter's.
        fitted: the trained adapter, then the ensemble's others where they have posteriors.
        means: by kind of members (members, rows, classes - 1), of the kinds that are run without posteriors.
        distilled: (rows, classes - 1, classes - 1), the covariances that ``fast`` predicts; None without it.
    """

    split: ProjectedSplit
    fitted: tuple[Fitted, ...]
    means: dict[Members, torch.Tensor]
    distilled: torch.Tensor | None = None

    def moments(
        self, name: PredictiveName, priors: Sequence[Prior] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a predictive's means (members, rows, classes - 1) and covariances, under its priors by default."""
        spec = PREDICTIVES[name]
        single = self.split.projected.contrast_mean[None]
        if not spec.covariance:
            return (single if spec.members == "single" else self.means[spec.members]), None
        if spec.members == "distilled":
            return single, self._distilled(priors)[None]
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


def split_outputs(
    run: Run,
    model: nn.Module,
    trained: Fitted,
    split: ProjectedSplit,
    fits: Sequence[MemberFit],
    examples: Sequence[Example],
    title: str,
) -> SplitOutputs:
    """Return what every member says of a split, whose rows the trained adapter has seen already."""
    others = []
    for fit in fits:
        weights = read_weights(model, member_folder(run.config, fit.step))
        with in_place(lora_parameters(model), weights):
            projected = project_split(run, model, fit.posterior, examples, f"{title}, step {fit.step}")
        others.append(Fitted(fit.posterior, fit.choice.prior, projected.projected))
    return SplitOutputs(split, (trained, *others), forward_means(run, model, examples, f"{title}, members"))


def forward_means(run: Run, model: Any, examples: Sequence[Example], title: str) -> dict[Members, torch.Tensor]:
    """Return by kind (members, rows, classes - 1) the contrasts of the members that run without posteriors."""
    config = run.config
    weights: dict[Members, Sequence[Mapping[str, torch.Tensor]]] = {}
    if config.predictives.ensemble:
        check_kept(config)
        weights["checkpoints"] = [read_weights(model, member_folder(config, step)) for step in member_steps(config)]
    if record := dropout_record(config):
        blocks = covered_blocks(model, run.readout)
        masks = dropout_weights(model, blocks, p=record.probability, members=record.members, seed=record.seed)
        weights["dropout"] = masks
    if not weights:
        return {}
    members = MemberSet(
        model=model,
        parameters=lora_parameters(model),
        readout=run.readout,
        trained=Member(),
        checkpoints=tuple(Member(w) for w in weights.get("checkpoints", ())),
        dropout=tuple(Member(w) for w in weights.get("dropout", ())),
    )
    wanted: set[Wanted] = {(kind, False) for kind in weights}
    places: list[int] = []
    parts: dict[Members, list[torch.Tensor]] = {kind: [] for kind in weights}
    for index, batch in batched(run, examples, title):
        outputs = member_outputs(members, batch, wanted)
        for kind, part in parts.items():
            part.append(outputs.means[kind])
        places += index
    order = torch.tensor(places).argsort()
    return {kind: torch.cat(part, 1)[:, order] for kind, part in parts.items()}
