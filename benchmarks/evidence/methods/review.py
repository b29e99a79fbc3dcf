"""Review scores beside the entropy of conditioned answers: do other signs rank mistakes better?

Every score is fitted on the draw's rows alone, each answered by the labels of the other folds. Distances are those of
``laplora.familiarity``, after every third layer, to the nearest class centre of the training rows.

``huq``: hybrid uncertainty quantification (Vazhentsev et al. 2023, *Hybrid Uncertainty Quantification for Selective
Text Classification in Ambiguous Tasks*, ACL): ranks by entropy, by distance, or by both, by where a row lies.
``satrmd``: the form of SATRMD (Vazhentsev et al., arXiv 2502.14427) with one token: a ridge regression of mistakes on
relative Mahalanobis distances (Ren et al., arXiv 2106.09022) by layer and the answer's log probability.
``learned``: a logistic regression with a ridge on entropy, margin, distance and the size of the labels' correction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge

from benchmarks.evidence.methods.base import Answer, Answers
from benchmarks.evidence.methods.conditioned import corrected, corrected_probs
from benchmarks.evidence.outputs import Outputs
from laplora.familiarity.mahalanobis import fit_layer
from laplora.linearised import entropy
from laplora.metrics.ranking import grouped_risk, tie_groups
from laplora.predictive.cross_fitting import cross_fitted

#: Where ``huq`` calls a row familiar and where ambiguous, as quantiles; the entropy's share of its ranks elsewhere.
_FAMILIAR, _AMBIGUOUS, _SHARES = (0.0, 0.25, 0.5, 0.75, 1.0), (0.5, 0.75, 0.9, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)
#: Inverse strength of ``learned``'s ridge, and ``satrmd``'s ridge.
_INVERSE_RIDGE, _RIDGE = 0.1, 1.0


@dataclass(frozen=True)
class Signs:
    """What is known of rows before anybody looks at them, float64.

    Attributes:
        probs: (rows, classes), conditioned; moved: (rows,), norm of the labels' correction, nats.
        distances: (rows, layers), logarithm of the squared distance to the nearest class centre.
        relative: (rows, layers), the squared distance less that to the centre of all training rows.
    """

    probs: torch.Tensor
    moved: torch.Tensor
    distances: torch.Tensor
    relative: torch.Tensor

    @property
    def entropy(self) -> torch.Tensor:
        """(rows,), nats."""
        return entropy(self.probs)

    @property
    def strangeness(self) -> torch.Tensor:
        """(rows,), the mean over layers."""
        return self.distances.mean(1)


#: From the draw's rows, which of them are answered wrongly, and the test rows: a score of the latter.
Score = Callable[[Signs, torch.Tensor, Signs], torch.Tensor]


def reviewed(score: Score) -> Answers:
    """Return the method that answers as ``conditioned`` does and reviews by a score."""

    def answer(outputs: Outputs, draw: int) -> Answer:
        rows, wrong, test = _signs(outputs, draw)
        return Answer(test.probs, score(rows, wrong, test))

    return answer


def huq(rows: Signs, wrong: torch.Tensor, test: Signs) -> torch.Tensor:
    """Return the hybrid score whose two limits and share rank the draw's own mistakes best."""

    def of(signs: Signs, familiar: float, ambiguous: float, share: float) -> torch.Tensor:
        limit, high = rows.strangeness.quantile(familiar), rows.entropy.quantile(ambiguous)
        among = rows.entropy[rows.strangeness <= limit]
        both = share * _rank(signs.entropy, rows.entropy) + (1 - share) * _rank(signs.strangeness, rows.strangeness)
        near = torch.where(signs.strangeness <= limit, _rank(signs.entropy, among), both)
        return torch.where(signs.entropy > high, _rank(signs.entropy, rows.entropy), near)

    def area(chosen: tuple[float, float, float]) -> float:
        _, group, _ = tie_groups(of(rows, *chosen))
        return float(grouped_risk(group, wrong).mean())

    return of(test, *min(product(_FAMILIAR, _AMBIGUOUS, _SHARES), key=area))


def _rank(values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """Return which share of some values is not above each."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, values, right=True).double() / len(ordered)


def satrmd(rows: Signs, wrong: torch.Tensor, test: Signs) -> torch.Tensor:
    """Return the ridge regression's estimate of a mistake."""
    features = [torch.cat([one.relative, one.probs.amax(1, keepdim=True).log()], 1) for one in (rows, test)]
    known, new = _standardised(*features)
    model = Ridge(_RIDGE).fit(known.numpy(), wrong.double().numpy())
    return torch.from_numpy(model.predict(new.numpy()))


def learned(rows: Signs, wrong: torch.Tensor, test: Signs) -> torch.Tensor:
    """Return the logistic regression's estimate of a mistake; the entropy where the draw has none or nothing else."""
    if bool(wrong.all()) or not bool(wrong.any()):
        return test.entropy

    def features(one: Signs) -> torch.Tensor:
        first, second = one.probs.topk(2).values.T
        return torch.stack([one.entropy, first - second, one.strangeness, one.moved], 1)

    known, new = _standardised(features(rows), features(test))
    model = LogisticRegression(C=_INVERSE_RIDGE).fit(known.numpy(), wrong.numpy())
    return torch.from_numpy(model.decision_function(new.numpy()))


def _standardised(known: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, spread = known.mean(0), known.std(0).clamp_min(1e-9)
    return (known - mean) / spread, (new - mean) / spread


def _signs(outputs: Outputs, draw: int) -> tuple[Signs, torch.Tensor, Signs]:
    """Return the signs of the draw's rows, which of them are answered wrongly, and the signs of the test rows."""
    key = f"signs {draw}"
    if key not in outputs.memo:
        outputs.memo[key] = _found(outputs, draw)
    found = outputs.memo[key]
    assert isinstance(found, tuple)
    return found


def _found(outputs: Outputs, draw: int) -> tuple[Signs, torch.Tensor, Signs]:
    rows, trained, test = outputs.calibration(draw), len(outputs.train), outputs.test

    def out_of_fold(fit: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        shift, held_out = corrected(rows.at(fit), trained), rows.at(answered)
        return torch.cat([corrected_probs(shift, held_out), shift.of(held_out.states).norm(dim=1, keepdim=True)], 1)

    answers = cross_fitted(out_of_fold, len(rows))
    served = corrected(rows, trained)
    distances = _distances(outputs)
    places = outputs.draws[draw]
    of_rows = Signs(answers[:, :-1], answers[:, -1], *(part[places] for part in distances["pool"]))
    of_test = Signs(corrected_probs(served, test), served.of(test.states).norm(dim=1), *distances["test"])
    return of_rows, of_rows.probs.argmax(1) != rows.labels, of_test


def _distances(outputs: Outputs) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return by split (rows, layers) distances and relative distances, computed once."""
    if "distances" not in outputs.memo:
        states = load_file(Path(outputs.unit.folder) / "layers.safetensors")
        layers = range(states["train"].shape[1])
        train, labels = states["train"].double(), outputs.train.labels
        classes = [fit_layer(train[:, layer], labels) for layer in layers]
        background = [fit_layer(train[:, layer], torch.zeros_like(labels)) for layer in layers]

        def measured(split: str) -> tuple[torch.Tensor, torch.Tensor]:
            of = states[split].double()
            near = torch.stack([one.squared(of[:, layer]) for layer, one in enumerate(classes)], 1)
            far = torch.stack([one.squared(of[:, layer]) for layer, one in enumerate(background)], 1)
            return near.log(), near - far

        outputs.memo["distances"] = {split: measured(split) for split in ("pool", "test")}
    found = outputs.memo["distances"]
    assert isinstance(found, dict)
    return found
