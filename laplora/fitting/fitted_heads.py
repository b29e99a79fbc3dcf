"""Heads of labelled rows, and what their held-out answers decide: thresholds, label sets, which head answers.

Every labelled row trains the heads. Each is also answered by heads that know neither its label nor its group's. These
answers alone set thresholds, sets and flags, weigh the heads in their pool, and choose what answers (``laplora.pool``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from laplora.answers.explaining import nothing_accepted
from laplora.answers.review_scores import ReviewScores
from laplora.artifact.manifest import CalibrationRecord, PredictiveRecord
from laplora.errors import DataError, warn
from laplora.experts.adapter import AsGiven, as_given, point
from laplora.experts.base import Labelled, Outputs, losses_of
from laplora.experts.familiar import across, compared, familiarity_of
from laplora.experts.of_head import HeadExpert, fit_head
from laplora.familiarity.percentile import Familiarity, false_alarms, is_unfamiliar
from laplora.features.outputs import HeadSource
from laplora.fitting.calibrate import OUT_OF_FOLD, calibration_record, recorded
from laplora.fitting.progress import Progress
from laplora.fitting.settings import FitSettings
from laplora.head import HeadError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.pool.choice import choose
from laplora.pool.pool import Pool, fit_pool
from laplora.pool.weights import pooled

#: Of an expert.
Named = TypeVar("Named", bound=str)
#: Passes of the base that a head's features take; a sentence encoder is small, and options are run one by one.
_PASSES = {"frozen": 1.0, "options": 2.0, "encoder": 0.05}


@dataclass(frozen=True)
class FittedHeads:
    """Heads, and the rules of their answers (``laplora.answers.prediction.Rules``).

    Attributes:
        labels: their names, in order; labelled: the rows' labels and folds.
        experts: by name; zero_shot: the model's own answer, ``map``; None where it has none.
        pool: of all experts, ``pooled``; None of a single one.
        recommended: name of what answers; reason: why.
        predictives, calibration, scores: thresholds and sets by name, as an artifact records them.
        familiar: by expert and fold, how familiar an input is.
        false_alarms: share of rows like the labelled ones that are flagged as unfamiliar, at most; 0: none is.
    """

    labels: tuple[str, ...]
    labelled: Labelled
    experts: Mapping[str, HeadExpert]
    zero_shot: AsGiven | None
    pool: Pool | None
    recommended: str
    reason: str
    predictives: Mapping[str, PredictiveRecord]
    calibration: CalibrationRecord
    scores: Mapping[str, ReviewScores]
    familiar: Mapping[str, tuple[Familiarity, ...]]
    false_alarms: float

    @property
    def answering(self) -> dict[str, HeadExpert | Pool]:
        """By name what answers: each expert, and their pool."""
        return {**self.experts, **({} if self.pool is None else {"pooled": self.pool})}

    def log_probs(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return by name (batch, classes) float64 log probabilities of what answers, nats; each head is asked once."""
        found = {name: expert.log_probs(outputs) for name, expert in self.experts.items()}
        return found if self.pool is None else {**found, self.pool.name: pooled(found, self.pool.weights)}

    def familiarity(self, name: str, outputs: Outputs) -> torch.Tensor | None:
        """Return (batch,) float64 how familiar inputs are, to the pool's heaviest head; None where it is off."""
        if not self.false_alarms:
            return None
        name = next(iter(self.pool.heads)) if self.pool is not None and name == self.pool.name else name
        return across(self.familiar[name], compared(outputs.features[self.experts[name].source], outputs.class_mask))

    def unfamiliar(self, familiarity: torch.Tensor | None) -> torch.Tensor | None:
        """Return (batch,) bool which rows get the flag, by how familiar they are; None where it is off."""
        return None if familiarity is None else is_unfamiliar(familiarity, self.false_alarms)


def fit_experts(
    names: Sequence[HeadSource], outputs: Outputs, labelled: Labelled, seed: int, progress: Progress
) -> dict[str, HeadExpert]:
    """Return the named experts, fitted on labelled rows.

    Raises:
        DataError: rows that no head can be fitted on.
    """
    return _each(names, lambda name: fit_head(name, outputs, labelled, name, seed=seed), progress)


def judged(
    labels: tuple[str, ...],
    labelled: Labelled,
    experts: Mapping[str, HeadExpert],
    zero_shot: AsGiven | None,
    pool: Pool | None,
    settings: FitSettings,
) -> FittedHeads:
    """Return what the experts' held-out answers decide; warns where the one that answers accepts nothing."""
    wanted = settings.calibration
    held_out = dict[str, PosteriorPredictive]()
    if zero_shot is not None:
        held_out["map"] = point(zero_shot.held_out)
    answering: dict[str, HeadExpert | Pool] = {**experts}
    if pool is not None:
        answering["pooled"] = pool
    for name, expert in answering.items():
        held_out[name] = point(expert.held_out, labelled.likelihood)
    # Fits of folds compare as they are: a row that trained the served head is no rank to compare with.
    entropies = {name: entropy(predictive.probs) for name, predictive in held_out.items()}
    mass = torch.ones(len(labelled), dtype=torch.float64)
    records, scores = recorded(
        wanted, held_out, entropies, dict.fromkeys(held_out, 1.0), labelled.labels, mass, 1, OUT_OF_FOLD
    )
    costs = {name: _PASSES[name] for name in experts}
    if pool is not None:
        costs["pooled"] = sum(costs[name] for name in pool.weights)
    losses = {name: losses_of(expert.held_out, labelled) for name, expert in answering.items()}
    choice = choose(losses, costs, labelled.folds, labelled.groups)
    best = choice.name
    rate = wanted.unfamiliar_rate
    if nothing := nothing_accepted(best, records[best].thresholds, scores[best]):
        warn(nothing.message)
    return FittedHeads(
        labels,
        labelled,
        experts,
        zero_shot,
        pool,
        best,
        choice.reason,
        records,
        calibration_record(wanted, labelled.groups, OUT_OF_FOLD),
        scores,
        {name: familiarity_of(expert) for name, expert in experts.items()} if rate else {},
        false_alarms(rate, len(labelled)) if rate else 0.0,
    )


def fit_heads(
    labels: tuple[str, ...],
    names: Sequence[HeadSource],
    outputs: Outputs,
    labelled: Labelled,
    settings: FitSettings,
    progress: Progress,
) -> FittedHeads:
    """Return heads of labelled rows with everything that their held-out answers decide; errors as ``fit_experts``."""
    zero_shot = as_given("zero_shot", outputs, labelled) if "zero_shot" in outputs.log_probs else None
    experts = fit_experts(names, outputs, labelled, settings.seed, progress)
    pool = fit_pool(experts, labelled) if len(experts) > 1 else None
    return judged(labels, labelled, experts, zero_shot, pool, settings)


def learned(
    heads: FittedHeads, outputs: Outputs, labelled: Labelled, settings: FitSettings, progress: Progress
) -> FittedHeads:
    """Return heads that also know further rows, under the precisions as fitted.

    Args:
        labelled: its groups number on from those of the rows before, and its folds are those that these are dealt to.
    """
    experts = _each(tuple(heads.experts), lambda name: heads.experts[name].learn(outputs, labelled), progress)
    zero_shot = heads.zero_shot
    if zero_shot is not None:
        zero_shot = replace(zero_shot, held_out=torch.cat([zero_shot.held_out, outputs.log_probs["zero_shot"]]))
    together = heads.labelled.joined(labelled)
    return judged(heads.labels, together, experts, zero_shot, _moved(heads.pool, experts, together), settings)


def forgotten(heads: FittedHeads, rows: torch.Tensor, settings: FitSettings, progress: Progress) -> FittedHeads:
    """Return heads that never had some rows, (some,) int64, under the precisions as fitted."""
    kept = torch.ones(len(heads.labelled), dtype=torch.bool).index_fill(0, rows, False)
    experts = _each(tuple(heads.experts), lambda name: heads.experts[name].forget(rows), progress)
    zero_shot = heads.zero_shot
    if zero_shot is not None:
        zero_shot = replace(zero_shot, held_out=zero_shot.held_out[kept])
    left = heads.labelled.take(kept)
    return judged(heads.labels, left, experts, zero_shot, _moved(heads.pool, experts, left), settings)


def _moved(pool: Pool | None, experts: Mapping[str, HeadExpert], labelled: Labelled) -> Pool | None:
    return None if pool is None else pool.with_experts(experts, labelled)


def _each(names: Sequence[Named], work: Callable[[Named], HeadExpert], progress: Progress) -> dict[str, HeadExpert]:
    """Return what work gives of each expert by its name, under a bar."""
    found = dict[str, HeadExpert]()
    try:
        for name in progress.track(names, "heads"):
            found[name] = work(name)
    except HeadError as error:
        raise DataError(f"no head can be fitted on these rows: {error}") from error
    return found
