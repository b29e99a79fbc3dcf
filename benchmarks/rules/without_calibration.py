"""What calibrates without calibration rows, on small networks: ``python -m benchmarks.rules.without_calibration``.

A network is trained on 100 or 200 rows of a logistic task, for a few steps or until it knows them by heart. Then:

- ``fresh``: the exact posterior of all rows; prior, temperatures and label sets from a quarter as many new rows.
- ``split``: four fifths of the rows in the posterior, and the rest of them calibrates, as ``laplora.fit`` does.
- ``leave one out``: all rows in the posterior, and each calibrates as its cavity (``laplora.prior.leave_one_out``).

Each is judged on 2000 new rows. With 8 seeds about four minutes of one core.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from laplora.decisions.conformal import conformal_threshold, prediction_sets
from laplora.metrics.scores import row_nll
from laplora.posterior.base import Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.passes import StructureSettings
from laplora.posterior.tensors import fit_jacobians, project_jacobians
from laplora.predictive.kinds import fit_predictive_temperature, predictive_probs, predictive_spec
from laplora.prior.evidence import choose_by_evidence
from laplora.prior.leave_one_out import cavities, choose_by_leave_one_out
from laplora.prior.validation import choose_by_validation

FEATURES, HIDDEN, NEW, LEVEL = 10, 16, 2000, 0.9
SIZES = (100, 200)
METHODS = ("fresh", "split", "leave one out")
#: Adam's steps of 0.01: as an adapter is stopped, and by heart.
STEPS = {"early": 60, "by heart": 1000}


@dataclass(frozen=True)
class Rows:
    """Rows as a posterior sees them, with their contrasts' covariance, (rows, 1, 1), under the chosen prior."""

    mean: torch.Tensor
    covariance: torch.Tensor
    labels: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Both classes of each row."""
        return torch.ones(len(self.labels), 2, dtype=torch.bool)

    def probs(self, name: str, temperature: float) -> torch.Tensor:
        """Return probabilities (rows, 2) of ``temperature`` or ``laplace``."""
        covariance = self.covariance[None] if name == "laplace" else None
        spec = predictive_spec(name, temperature)  # type: ignore[arg-type]
        return predictive_probs(spec, self.mean[None], covariance, self.mask).probs

    def temperature(self) -> float:
        """Return the temperature of least NLL on these rows."""
        return fit_predictive_temperature(self.mean[None], self.labels, self.mask)


class Network:
    """A trained network with its rows' logits and Jacobians."""

    def __init__(self, rows: int, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 2)
        ).double()
        start = {name: weight.detach().clone() for name, weight in self.net.named_parameters()}
        teacher = torch.randn(FEATURES, dtype=torch.float64) / FEATURES**0.5

        def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            inputs = torch.randn(count, FEATURES, dtype=torch.float64)
            odds = 3 * inputs @ teacher + inputs[:, 0] * inputs[:, 1]
            return inputs, (torch.rand(count, dtype=torch.float64) < odds.sigmoid()).long()

        self.train, self.fresh, self.test = drawn(rows), drawn(rows // 4), drawn(NEW)
        optimizer = torch.optim.Adam(self.net.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(self.net(self.train[0]), self.train[1]).backward()
            optimizer.step()
        self.weights = {name: weight.detach() for name, weight in self.net.named_parameters()}
        moved = [(weight - start[name]).square().sum() for name, weight in self.weights.items()]
        self.distances = torch.stack(moved)

    def batch(self, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return logits and Jacobians of rows."""
        one: Callable[..., torch.Tensor] = lambda w, row: functional_call(self.net, w, (row,))  # noqa: E731
        return self.net(inputs).detach(), vmap(jacrev(one), (None, 0))(self.weights, inputs)

    def posterior(self, inputs: torch.Tensor) -> Posterior:
        """Return the exact posterior over rows."""
        return fit_jacobians([self.batch(inputs)], StructureSettings(structure="exact"))

    def projected(self, posterior: Posterior, inputs: torch.Tensor) -> ProjectedJacobians:
        """Return rows as a posterior sees them."""
        return project_jacobians(posterior, [self.batch(inputs)])[0]

    def calibrated(self, method: str) -> tuple[Rows, Rows]:
        """Return what calibrates by a method, and the new rows."""
        (inputs, labels), split = self.train, len(self.train[1]) // 5
        kept = (inputs[split:], labels[split:]) if method == "split" else self.train
        posterior = self.posterior(kept[0])
        if method == "leave one out":
            projected = self.projected(posterior, inputs)
            mask = torch.ones(len(labels), 2, dtype=torch.bool)
            likelihood = -float(F.cross_entropy(self.net(inputs).detach(), labels, reduction="sum"))
            under = choose_by_evidence(posterior, self.distances, likelihood, "scalar").prior
            prior = choose_by_leave_one_out(posterior, projected, labels, mask, trained_under=under).prior
            mean, _, _ = cavities(projected.contrast_mean, covariance_of(posterior, projected, under), labels, mask)
            _, without, _ = cavities(projected.contrast_mean, covariance_of(posterior, projected, prior), labels, mask)
            rows = Rows(mean, without, labels)
        else:
            held_out = self.fresh if method == "fresh" else (inputs[:split], labels[:split])
            projected = self.projected(posterior, held_out[0])
            mask = torch.ones(len(held_out[1]), 2, dtype=torch.bool)
            prior = choose_by_validation(posterior, projected, held_out[1], mask, "scalar").prior
            rows = Rows(projected.contrast_mean.double(), covariance_of(posterior, projected, prior), held_out[1])
        new = self.projected(posterior, self.test[0])
        return rows, Rows(new.contrast_mean.double(), covariance_of(posterior, new, prior), self.test[1])


def covariance_of(posterior: Posterior, projected: ProjectedJacobians, prior: Prior) -> torch.Tensor:
    """Return the contrasts' covariance under a prior."""
    return posterior.covariance(projected, block_precisions(prior, posterior.blocks))


def judged(calibration: Rows, new: Rows) -> list[float]:
    """Return the new rows' NLL of MAP, temperature and Laplace; the temperature; and the coverage of Laplace's sets."""
    temperature = calibration.temperature()
    wanted = [("temperature", 1.0), ("temperature", temperature), ("laplace", 1.0)]
    losses = [float(row_nll(new.probs(*one), new.labels).mean()) for one in wanted]
    threshold = conformal_threshold(calibration.probs(*wanted[2]), calibration.labels, LEVEL)
    sets = prediction_sets(new.probs(*wanted[2]), threshold, new.mask)
    covered = sets.gather(1, new.labels[:, None]).double().mean()
    return [*losses, temperature, float(covered)]


def main() -> None:
    """Print the table, means over the seeds."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=8)
    seeds = options.parse_args().seeds
    print("rows trained   calibrated by  MAP   temp  laplace T     coverage (lowest)")
    for rows in SIZES:
        for name, steps in STEPS.items():
            networks = [Network(rows, steps, seed) for seed in range(seeds)]
            for method in METHODS:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # precisions at a bound
                    found = torch.tensor([judged(*network.calibrated(method)) for network in networks])
                mean = " ".join(f"{value:.3f}" for value in found.mean(0))
                print(f"{rows} {name:9} {method:14} {mean} ({found[:, -1].min():.3f})", flush=True)


if __name__ == "__main__":
    main()
