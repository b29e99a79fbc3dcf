"""What averaging each row over the orders of its options gains, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from laplora.artifact.manifest import PredictiveRecord
from laplora.classifier import Classifier
from laplora.decisions.uncertainty import review_score
from laplora.fitting.calibrate import predictive_of
from laplora.fitting.outputs import SplitOutputs, corrected
from laplora.fitting.projected import project_split
from laplora.fitting.settings import FitSettings
from laplora.linearised import PosteriorPredictive
from laplora.metrics.scores import Evaluation, bootstrap_interval, evaluate_probs, row_nll
from laplora.posterior.base import Posterior
from laplora.predictive.kinds import Corrected, PredictiveName
from laplora.predictive.order_average import average_by_input, average_orders, order_information
from laplora.predictive.shift import Shift
from laplora.prompts.examples import Example
from laplora.prompts.option_order import Order, OrderAverage, option_orders, permute_choices, restore_logits
from training.workspace.terminal import Terminal

#: What a method's name ends with when its orders were averaged.
SUFFIX = "_order_average"


@dataclass(frozen=True)
class OrderGain:
    """One predictive averaged over the orders, against itself in the order of the data.

    Attributes:
        prompts: a row on average: the cost, as a multiple of one prompt.
        nll_difference: averaged less not averaged, nats a row; low and high: its paired-bootstrap interval at 95 %.
        accuracy_difference: likewise.
        changed: share of the rows whose answer is not the same in every order.
        information: mutual information of label and order, nats a row.
    """

    prompts: float
    nll_difference: float
    low: float
    high: float
    accuracy_difference: float
    changed: float
    information: float

    def sentence(self, title: str) -> str:
        """Return cost and gain in words, the method by its title."""
        return (
            f"{title} of {self.prompts:.1f} prompts a row: NLL {self.nll_difference:+.3f} "
            f"(95 % {self.low:+.3f} to {self.high:+.3f}) and accuracy {self.accuracy_difference:+.3f} against the "
            f"order of the data; the order changes the answer to {self.changed:.0%} of the rows"
        )


@dataclass(frozen=True)
class _Prompts:
    """The prompts of a split, row by row, the order of the data first.

    Attributes:
        orders: of each prompt; counts: prompts of each row.
        others: the prompts in another order than the data's.
        sources: of each prompt, its number in the split's rows followed by ``others``.
    """

    orders: list[Order]
    counts: list[int]
    others: list[Example]
    sources: list[int]


def order_averages(
    classifier: Classifier,
    settings: FitSettings,
    posterior: Posterior,
    outputs: SplitOutputs,
    shifts: Mapping[Corrected, Shift],
    examples: Sequence[Example],
    records: Mapping[PredictiveName, PredictiveRecord],
    which: OrderAverage = True,
) -> tuple[dict[str, Evaluation], dict[str, OrderGain]]:
    """Return evaluation and gain of each predictive averaged over the orders, both by the averaged method's name.

    Args:
        posterior: of the trained adapter; records: of the predictives to average, ``map`` first; which: of
            ``option_orders``.
    """
    prompts = _prompts(examples, which)
    counts = torch.tensor(prompts.counts)
    in_pairs = counts.repeat_interleave(counts) == 2
    trained, labels, title = outputs.fitted, outputs.split.labels, "test rows, other orders"
    bar, size = Terminal(), settings.laplace.batch_size
    split = project_split(classifier, posterior, prompts.others, bar, title, batch_size=size)
    other_outputs = corrected(SplitOutputs(split, replace(trained, projected=split.projected)), shifts)
    evaluations: dict[str, Evaluation] = {}
    gains: dict[str, OrderGain] = {}
    map_probs = None
    for name, record in records.items():
        single = predictive_of(outputs, name, record.temperature)
        each = _joined(single, predictive_of(other_outputs, name, record.temperature), prompts.sources)
        if record.reversed_temperature:
            pair = [predictive_of(one, name, record.reversed_temperature) for one in (outputs, other_outputs)]
            each = _where(in_pairs, _joined(pair[0], pair[1], prompts.sources), each)
        probs = average_orders(each, prompts.orders, prompts.counts).probs
        map_probs = probs if map_probs is None else map_probs
        scores = review_score(record.thresholds, probs=probs, map_probs=map_probs)
        evaluations[name + SUFFIX] = evaluate_probs(probs, labels, scores)
        gains[name + SUFFIX] = _gain(single.probs, each.probs, probs, prompts, labels, settings.seed)
    return evaluations, gains


def _prompts(examples: Sequence[Example], which: OrderAverage) -> _Prompts:
    """Return the prompts of examples in the orders of ``option_orders``."""
    prompts = _Prompts([], [], [], [])
    for row, example in enumerate(examples):
        orders = option_orders(example.class_count, which)
        prompts.orders.extend(orders)
        prompts.counts.append(len(orders))
        first = len(examples) + len(prompts.others)
        prompts.sources.extend([row, *range(first, first + len(orders) - 1)])
        prompts.others.extend(
            replace(example, fields=permute_choices(example.fields, order), label=order.index(example.label))
            for order in orders[1:]
        )
    return prompts


def _where(rows: torch.Tensor, these: PosteriorPredictive, those: PosteriorPredictive) -> PosteriorPredictive:
    """Return the predictive with some rows of another one."""
    chosen = [
        torch.where(rows.view(-1, *[1] * (one.ndim - 1)), one, other)
        for one, other in (
            (getattr(these, name), getattr(those, name)) for name in ("probs", "std", "expected_entropy")
        )
    ]
    return PosteriorPredictive(*chosen)


def _joined(first: PosteriorPredictive, others: PosteriorPredictive, sources: list[int]) -> PosteriorPredictive:
    """Return the predictive of every prompt, in the order of the prompts."""
    parts = (torch.cat([getattr(p, name) for p in (first, others)]) for name in ("probs", "std", "expected_entropy"))
    return PosteriorPredictive(*(part[sources] for part in parts))


def _gain(
    single: torch.Tensor, each: torch.Tensor, averaged: torch.Tensor, prompts: _Prompts, labels: torch.Tensor, seed: int
) -> OrderGain:
    difference = row_nll(averaged, labels) - row_nll(single, labels)
    low, high = bootstrap_interval(
        lambda index: difference[index].mean(1), len(labels), generator=torch.Generator().manual_seed(seed)
    )
    right = (averaged.argmax(1) == labels).double() - (single.argmax(1) == labels).double()
    counts = torch.tensor(prompts.counts)
    answers = restore_logits(each, prompts.orders).argmax(1).double()
    first = answers[counts.cumsum(0) - counts].repeat_interleave(counts)
    return OrderGain(
        prompts=len(prompts.orders) / len(labels),
        nll_difference=float(difference.mean()),
        low=low,
        high=high,
        accuracy_difference=float(right.mean()),
        changed=float((average_by_input((answers != first).double(), prompts.counts) > 0).double().mean()),
        information=float(order_information(each, prompts.orders, prompts.counts).mean()),
    )
