"""One trained model's pool, labelled bit by bit in the order of each method, and what every label was worth.

A user has the rows that trained, 150 labelled calibration rows and 600 rows without labels. The prior precision has the
least NLL on the calibration rows. Each method orders the 600 rows once. Then the calibration rows and the first n rows
in that order condition the posterior by their labels (``laplora.conditioning``), and the test rows are answered. How
wide the conditioning kernel is, is fixed for a model and draw, for all methods and n: it has the least leave-one-out
loss of the calibration rows under their labels and those of 300 random rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from benchmarks.evidence.methods.laplace import fitted, spectrum
from benchmarks.evidence.outputs import Outputs, Rows
from laplora.conditioning.labelled import log_contrasts
from laplora.conditioning.left_out import left_out_mean
from laplora.conditioning.mode import posterior_mode
from laplora.linearised import class_log_probs, contrast_logits, entropy, hessian_root
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.shift import tempering

#: Labels that are bought, and random orders that are averaged.
LABELS = (0, 10, 20, 40, 80, 160, 300)
ORDERS = 3
#: Mean prior variances of a contrast that the conditioning kernel is tried with, nats squared.
VARIANCES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
#: The blocks that the posterior covers, and conditioning moves.
SUBSET = "values_b"

#: Mean NLL in nats and accuracy of the test rows, by number of labels.
Curve = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Simulation:
    """A draw of one trained model.

    Attributes:
        labelled: places in the pool of the calibration rows; free: of the others.
    """

    outputs: Outputs
    draw: int

    @cached_property
    def labelled(self) -> torch.Tensor:
        """Places in the pool of the rows that have labels."""
        return self.outputs.draws[self.draw]

    @cached_property
    def free(self) -> torch.Tensor:
        """Places of the rows that have none."""
        taken = torch.zeros(len(self.outputs.pool), dtype=torch.bool)
        taken[self.labelled] = True
        return (~taken).nonzero()[:, 0]

    @cached_property
    def precision(self) -> float:
        """The prior precision that the calibration rows choose."""
        return fitted(self.outputs, self.draw, SUBSET).precision

    @cached_property
    def probs(self) -> torch.Tensor:
        """The Laplace predictive of the pool, (rows, classes)."""
        every = torch.arange(len(self.outputs.pool))
        covariance = spectrum(self.outputs, SUBSET).covariance(every, self.precision)
        pool = self.outputs.pool
        return posterior_predictive(pool.mean, covariance, pool.class_mask).probs

    def kernel(self, precision: float, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return (rows, contrasts, others, contrasts) float64 between rows of the pool and others.

        Args:
            others: places in the pool, or of test rows after all of the pool.
        """
        of, gram = spectrum(self.outputs, SUBSET), self.outputs.kernel(SUBSET)
        raw = gram.gram[gram.places(rows)][:, gram.places(others)].double()
        left, right = (of.projected[one].double().flatten(0, 1) for one in (rows, others))
        flat = (raw - (left / (of.values + precision)) @ right.T) / precision
        return flat.view(len(rows), gram.contrasts, len(others), gram.contrasts)


def orders(one: Simulation, count: int) -> dict[str, list[torch.Tensor]]:
    """Return by method the free rows in the order to label, several of ``random``; numbers among the free rows."""
    probs, rows = one.probs[one.free], one.outputs.pool.at(one.free)
    every = torch.arange(len(one.outputs.pool))
    covariance = spectrum(one.outputs, SUBSET).covariance(every, one.precision)[one.free]
    root = hessian_root(probs.clamp_min(torch.finfo(torch.float64).tiny).log(), rows.class_mask)
    seen = torch.eye(root.shape[-1], dtype=torch.float64) + root @ covariance.double() @ root
    scores = {"information": torch.logdet(seen) / 2, "entropy": entropy(probs)}
    draws = [torch.Generator().manual_seed(seed) for seed in range(ORDERS)]
    return {"random": [torch.randperm(len(one.free), generator=draw)[:count] for draw in draws]} | {
        name: [score.argsort(descending=True, stable=True)[:count]] for name, score in scores.items()
    }


def simulate(one: Simulation) -> dict[str, Curve]:
    """Return every method's curve."""
    outputs = one.outputs
    test, pool = outputs.test, outputs.pool
    every = torch.cat([one.labelled, one.free])
    rows, start = pool.at(every), len(one.labelled)
    prior_mean = log_contrasts(one.probs[every], rows.class_mask)
    precision = _conditioning_precision(one, every, rows, prior_mean)
    among = one.kernel(precision, every, every)
    to_test = one.kernel(precision, every, torch.arange(len(pool), len(pool) + len(test))).permute(2, 3, 0, 1)
    covariance = fitted(outputs, one.draw, SUBSET).test
    kappa = tempering(covariance, test.class_mask)

    def measured(chosen: torch.Tensor) -> tuple[float, float]:
        index = torch.cat([torch.arange(start), chosen + start])
        some = rows.at(index)
        mode = posterior_mode(among[index][:, :, index], prior_mean[index], some.labels, some.class_mask)
        mean = test.mean + kappa * mode.moved(to_test[:, :, index])
        probs = posterior_predictive(mean, covariance, test.class_mask).probs
        right = probs.gather(1, test.labels[:, None])
        return -float(right.log().mean()), float((probs.argmax(1) == test.labels).double().mean())

    none = measured(torch.arange(0))
    curves = {}
    for name, tried in orders(one, LABELS[-1]).items():
        found = {n: [measured(order[:n]) for order in tried] for n in LABELS[1:]}
        curves[name] = {0: none} | {n: _mean(values) for n, values in found.items()}
    return curves


def _mean(values: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(v[0] for v in values) / len(values), sum(v[1] for v in values) / len(values)


def _conditioning_precision(one: Simulation, every: torch.Tensor, rows: Rows, prior_mean: torch.Tensor) -> float:
    """Return the precision of the kernel by which the calibration rows are predicted best from all other labels."""
    start = len(one.labelled)
    draw = torch.Generator().manual_seed(ORDERS)
    further = start + torch.randperm(len(one.free), generator=draw)[: LABELS[-1]]
    index = torch.cat([torch.arange(start), further])
    some, labelled = rows.at(index), rows.at(torch.arange(start))
    own = one.outputs.kernel(SUBSET).diagonal[len(one.outputs.train) :].double()
    unit = float(own.diagonal(dim1=1, dim2=2).mean())
    losses = {}
    begin = None
    for variance in VARIANCES:
        kernel = one.kernel(unit / variance, every[index], every[index])
        mode = posterior_mode(kernel, prior_mean[index], some.labels, some.class_mask, begin)
        begin = mode.alpha
        logits = contrast_logits(left_out_mean(mode, kernel)[:start])
        log_probs = class_log_probs(logits, labelled.class_mask)
        losses[unit / variance] = -float(log_probs.gather(1, labelled.labels[:, None]).mean())
    return min(losses, key=lambda precision: losses[precision])
