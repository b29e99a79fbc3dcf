"""What a loaded artifact gives on labelled rows, computed as its server computes it, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch

from laplora.answers.prediction import wanted_outputs
from laplora.classifier import Classifier, batches
from laplora.fitting.outputs import Fitted, SplitOutputs, corrected
from laplora.fitting.progress import Progress, Silent
from laplora.fitting.projected import ProjectedSplit, project_split
from laplora.fitting.settings import FitSettings
from laplora.posterior.base import Prior, ProjectedJacobians
from laplora.posterior.binary import binary_means
from laplora.predictive.kinds import PREDICTIVES, Members, PredictiveName
from laplora.predictive.member_outputs import member_outputs
from laplora.predictor import Predictor
from laplora.prompts.examples import Example

#: Runs a pass through the model: at once, or between a server's requests.
Run = Callable[[Callable[[], Any]], Any]
#: Kinds of members that take passes of their own.
_FURTHER: tuple[Members, ...] = ("distilled",)
_Further = dict[Members, tuple[torch.Tensor, torch.Tensor | None]]
#: Rows that run together.
_BATCH = 8


class LoadedClassifier(Classifier):
    """The classifier of a loaded artifact, whose model was checked when it was loaded."""

    def __init__(self, predictor: Predictor) -> None:
        """Take the predictor's model, tokenizer and prompt as they are."""
        manifest = predictor.artifact.manifest
        self.model, self.tokenizer = predictor.members.model, predictor.tokenizer
        self.labels = self.verbalizers = manifest.labels
        self.template, self.max_tokens = manifest.template.template(), manifest.max_tokens
        self.readout = predictor.members.readout
        self._pad_token_id = predictor.tokenizer.pad_token_id


@dataclass(frozen=True)
class ServedOutputs(SplitOutputs):
    """Rows' outputs as the server computes them.

    Attributes:
        means: by kind of members (1, rows, classes - 1), of kinds that take passes of their own; covariances: theirs.
    """

    means: Mapping[Members, torch.Tensor] = field(default_factory=dict)
    covariances: Mapping[Members, torch.Tensor] = field(default_factory=dict)

    def moments(self, name: PredictiveName, prior: Prior | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a predictive's mean and covariance under the artifact's prior: no other is tried."""
        spec = PREDICTIVES[name]
        if spec.members not in self.means:
            return super().moments(name)
        return self.means[spec.members], self.covariances[spec.members] if spec.covariance else None


def served_outputs(
    packaged: Predictor,
    classifier: Classifier,
    settings: FitSettings,
    examples: Sequence[Example],
    run: Run,
    progress: Progress,
    most_tokens: int | None = None,
) -> ServedOutputs:
    """Return what the packaged artifact gives on rows, on the CPU in their order.

    Args:
        most_tokens: of a batch, padded, as ``Predictor.device_tokens`` counts; a row with more runs alone. None: any.
    """
    manifest, members = packaged.artifact.manifest, packaged.members
    assert members.trained.posterior is not None
    posterior = members.trained.posterior
    wanted = wanted_outputs([n for n in settings.predictives.names if PREDICTIVES[n].members in _FURTHER])
    rows = classifier.encode_examples(examples)
    several = classifier.readout.likelihood == "bernoulli"

    def one_pass(index: list[int]) -> tuple[ProjectedSplit, _Further]:
        some = [examples[i] for i in index]
        split = project_split(classifier, posterior, some, Silent(), "", batch_size=len(some))
        further: _Further = {}
        if wanted:
            found = member_outputs(members, classifier.collate([rows[i] for i in index]), wanted)
            for kind in {kind for kind, _ in wanted}:
                further[kind] = found.means[kind], found.covariances.get(kind)
        return split, further

    places, splits, others = list[int](), list[ProjectedSplit](), list[_Further]()
    together = batches(rows, _BATCH, None if most_tokens is None else (most_tokens, packaged.device_tokens))
    for index in progress.track(together, "labelled rows"):
        split, further = run(partial(one_pass, index))
        places, splits, others = [*places, *index], [*splits, split], [*others, further]
    order = torch.tensor(places).argsort()
    joined = taken(concatenated(splits), order)
    means, covariances = dict[Members, torch.Tensor](), dict[Members, torch.Tensor]()
    for kind in others[0]:
        mean = torch.cat([one[kind][0] for one in others], 1)[:, order]
        means[kind] = binary_means(mean) if several else mean
        parts = [part for one in others if (part := one[kind][1]) is not None]
        if parts:
            covariance = torch.cat(parts, 1)[:, order]
            covariances[kind] = _binary_variances(covariance) if several else covariance
    fitted = Fitted(posterior.to("cpu", torch.float32), manifest.prior.prior(), joined.projected)
    found = ServedOutputs(joined, fitted, means=means, covariances=covariances)
    return cast(ServedOutputs, corrected(found, members.shifts))


def _binary_variances(covariance: torch.Tensor) -> torch.Tensor:
    """Return the variances of labels (members, rows, labels, labels) as those of the contrasts of binary rows."""
    return covariance.diagonal(dim1=-2, dim2=-1).flatten(1)[..., None, None] / 2


def concatenated(splits: Sequence[ProjectedSplit]) -> ProjectedSplit:
    """Return splits as one; states after layers are left out."""
    first = splits[0]

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(one, name) for one in splits])

    projected = ProjectedJacobians(
        *(torch.cat([getattr(one.projected, name) for one in splits]) for name in ("contrast_mean", "kept", "rest"))
    )
    return ProjectedSplit(
        projected,
        joined("logits"),
        joined("class_mask"),
        joined("labels"),
        joined("label_mass"),
        None,
        first.together,
        joined("last"),
    )


def taken(split: ProjectedSplit, inputs: torch.Tensor) -> ProjectedSplit:
    """Return some inputs of a split, in an order."""
    rows = (inputs[:, None] * split.together + torch.arange(split.together)).flatten()
    return replace(
        split,
        projected=split.projected.take(rows),
        logits=split.logits[rows],
        class_mask=split.class_mask[rows],
        labels=split.labels[rows],
        label_mass=split.label_mass[rows],
        last=None if split.last is None else split.last[inputs],
    )
