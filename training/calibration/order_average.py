"""The gain of averaging each row over two orders of its options, the data's and its reverse, for its two prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from laplora.artifact.manifest import PredictiveRecord
from laplora.classifier import Classifier
from laplora.decisions.uncertainty import review_score
from laplora.features.expert_passes import ExpertPasses
from laplora.fitting.calibrate import in_reverse
from laplora.fitting.evaluation import RowOutputs, outputs_of
from laplora.fitting.projected import ProjectedSplit
from laplora.metrics.paired import nll_difference
from laplora.metrics.scores import Evaluation, evaluate_probs
from laplora.posterior.base import Posterior
from laplora.predictive.kinds import PredictiveName
from laplora.predictive.order_average import order_information
from laplora.prompts.examples import Example
from laplora.prompts.option_order import restore_logits
from laplora.settings import FitSettings
from training.workspace.terminal import Terminal

#: The end of a method's name if its orders were averaged.
SUFFIX = "_order_average"


@dataclass(frozen=True)
class OrderGain:
    """One predictive averaged over two orders, against itself in the order of the data.

    Attributes:
        nll_difference: averaged less not averaged, nats a row; low and high: its paired-bootstrap interval at 95 %.
        accuracy_difference: likewise.
        changed: share of the rows whose answer is not the same in both orders.
        information: mutual information of label and order, nats a row.
    """

    nll_difference: float
    low: float
    high: float
    accuracy_difference: float
    changed: float
    information: float

    def sentence(self, title: str) -> str:
        """Return the gain in words, the method by its title."""
        return (
            f"{title}: NLL {self.nll_difference:+.3f} (95 % {self.low:+.3f} to {self.high:+.3f}) and accuracy "
            f"{self.accuracy_difference:+.3f} against the order of the data, for two prompts a row; the order changes "
            f"the answer to {self.changed:.0%} of the rows"
        )


def order_averages(
    classifier: Classifier,
    settings: FitSettings,
    posterior: Posterior,
    found: RowOutputs,
    passes: ExpertPasses | None,
    examples: Sequence[Example],
    records: Mapping[PredictiveName, PredictiveRecord],
) -> tuple[dict[str, Evaluation], dict[str, OrderGain]]:
    """Return evaluation and gain of each predictive averaged over two orders, both by the averaged method's name.

    Args:
        posterior: of the trained adapter; found, passes: what ``outputs_of`` returned of the examples, and took.
        records: of the predictives to average, ``map`` first.
    """
    outputs = found.outputs
    labels, counts = outputs.split.labels, [example.class_count for example in examples]
    reverse = outputs_of(
        classifier,
        settings.laplace.batch_size,
        posterior,
        outputs.fitted.prior,
        None,
        in_reverse(examples),
        Terminal(),
        "test rows, choices in reverse",
        found.heads,
        passes,
    )
    evaluations: dict[str, Evaluation] = {}
    gains: dict[str, OrderGain] = {}
    map_probs = None
    for name, record in records.items():
        temperature = record.reversed_temperature or record.temperature
        one = found.predictive(name, temperature).probs
        other = restore_logits(reverse.predictive(name, temperature).probs, counts)
        probs = (one + other) / 2
        map_probs = probs if map_probs is None else map_probs
        scores = review_score(record.thresholds, probs=probs, map_probs=map_probs)
        evaluations[name + SUFFIX] = evaluate_probs(probs, labels, scores, groups=outputs.split.groups)
        single = found.predictive(name, record.temperature).probs
        gains[name + SUFFIX] = _gain(single, (one, other), outputs.split, settings.seed)
    return evaluations, gains


def _gain(single: torch.Tensor, both: tuple[torch.Tensor, torch.Tensor], split: ProjectedSplit, seed: int) -> OrderGain:
    one, other = both
    averaged, labels = (one + other) / 2, split.labels
    found = nll_difference(averaged, single, labels, seed=seed, groups=split.groups)
    right = (averaged.argmax(1) == labels).double() - (single.argmax(1) == labels).double()
    return OrderGain(
        nll_difference=found.difference,
        low=found.low,
        high=found.high,
        accuracy_difference=float(right.mean()),
        changed=float((one.argmax(1) != other.argmax(1)).double().mean()),
        information=float(order_information(one, other).mean()),
    )
