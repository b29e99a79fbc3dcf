"""What a loaded artifact gives on labelled rows, computed as its server computes it, one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from laplora.classifier import Classifier, batches
from laplora.fitting.outputs import Fitted, SplitOutputs
from laplora.fitting.progress import Progress, Silent
from laplora.fitting.projected import ProjectedSplit, project_split
from laplora.fitting.rows import groups_of
from laplora.posterior.base import ProjectedJacobians
from laplora.predictor import Predictor
from laplora.prompts.examples import Example

#: Runs a pass through the model: at once, or between a server's requests.
Run = Callable[[Callable[[], Any]], Any]
#: Rows that run together.
_BATCH = 8


class LoadedClassifier(Classifier):
    """The classifier of a loaded artifact, whose model was checked when it was loaded."""

    def __init__(self, predictor: Predictor) -> None:
        """Take the predictor's model, tokenizer and prompt as they are."""
        manifest = predictor.artifact.manifest
        self.model, self.tokenizer = predictor.adapted.model, predictor.tokenizer
        self.labels = self.verbalizers = manifest.labels
        self.template, self.max_tokens = manifest.template.template(), manifest.max_tokens
        self.readout = predictor.adapted.readout
        self.pad_token_id = predictor.tokenizer.pad_token_id


def served_outputs(
    packaged: Predictor,
    classifier: Classifier,
    examples: Sequence[Example],
    run: Run,
    progress: Progress,
    most_tokens: int | None = None,
) -> SplitOutputs:
    """Return what the packaged artifact gives on rows, on the CPU in their order.

    Args:
        most_tokens: of a batch, padded, as ``Predictor.device_tokens`` counts; a row with more runs alone. None: any.
    """
    manifest, adapted = packaged.artifact.manifest, packaged.adapted
    assert adapted.posterior is not None
    assert manifest.prior is not None
    posterior = adapted.posterior
    rows = classifier.encode_examples(examples)

    def one_pass(index: list[int]) -> ProjectedSplit:
        some = [examples[i] for i in index]
        return project_split(classifier, posterior, some, Silent(), "", batch_size=len(some))

    places, splits = list[int](), list[ProjectedSplit]()
    together = batches(rows, _BATCH, None if most_tokens is None else (most_tokens, packaged.device_tokens))
    for index in progress.track(together, "labelled rows"):
        splits.append(run(partial(one_pass, index)))
        places += index
    order = torch.tensor(places).argsort()
    joined = replace(taken(concatenated(splits), order), groups=groups_of(classifier, examples))
    fitted = Fitted(posterior.to("cpu", torch.float32), manifest.prior.prior(), joined.projected)
    return SplitOutputs(joined, fitted, adapted.shifts)


def concatenated(splits: Sequence[ProjectedSplit]) -> ProjectedSplit:
    """Return splits as one; states after layers and groups are left out."""

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(one, name) for one in splits])

    return ProjectedSplit(
        ProjectedJacobians.joined([one.projected for one in splits]),
        joined("logits"),
        joined("class_mask"),
        joined("labels"),
        joined("label_mass"),
        together=splits[0].together,
        last=joined("last"),
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
        groups=None if split.groups is None else split.groups[inputs],
    )
