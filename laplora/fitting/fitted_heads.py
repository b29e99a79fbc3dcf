"""Heads of labelled rows, and what their held-out answers decide: thresholds, label sets, which head answers.

Every labelled row trains the heads. Each is also answered by heads that know neither its label nor its group's. These
answers alone set thresholds, sets and flags, weigh the heads in their pool, and choose what answers (``laplora.pool``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from laplora.answers.review_scores import ReviewScores
from laplora.artifact.head_files import KeptRows, expert_fields
from laplora.artifact.manifest import (
    CalibrationRecord,
    EncoderRecord,
    FamiliarityRecord,
    PredictiveRecord,
    RecommendedRecord,
)
from laplora.errors import DataError
from laplora.execution.progress import Progress
from laplora.experts.adapter import AsGiven, as_given, point
from laplora.experts.base import Expert, Labelled, Outputs, losses_of
from laplora.experts.familiar import familiarity_of, reads_states
from laplora.experts.of_head import HeadExpert, fit_head
from laplora.familiarity.percentile import Familiarity, false_alarms
from laplora.features.outputs import HeadSource, LogProbSource
from laplora.fitting.calibrate import OUT_OF_FOLD, calibration_record, recorded
from laplora.head import HeadError
from laplora.linearised import PosteriorPredictive
from laplora.pool.choice import Choice, choose, costs_of
from laplora.pool.pool import Pool, fit_pool
from laplora.pool.served import ServedExperts
from laplora.settings import FitSettings

#: The heads that correct another model's answer.
CORRECTING: tuple[HeadSource, ...] = ("rescaled", "corrected")
#: The name of an expert.
Named = TypeVar("Named", bound=str)


@dataclass(frozen=True)
class FittedHeads:
    """Heads, and what their held-out answers decide.

    Attributes:
        labelled: the rows' labels and folds.
        experts: by name; zero_shot: the model's own answer, ``map``; None where it has none.
        pool: of all experts, ``pooled``; None of a single one.
        choice: of what answers.
        predictives, calibration, scores: thresholds and sets by name, as an artifact records them.
        familiar: by expert and fold, how familiar an input is.
        false_alarms: share of rows like the labelled ones that are flagged as unfamiliar, at most; 0: none is.
    """

    labelled: Labelled
    experts: Mapping[str, HeadExpert]
    zero_shot: AsGiven | None
    pool: Pool | None
    choice: Choice
    predictives: Mapping[str, PredictiveRecord]
    calibration: CalibrationRecord
    scores: Mapping[str, ReviewScores]
    familiar: Mapping[str, tuple[Familiarity, ...]]
    false_alarms: float

    @property
    def answering(self) -> dict[str, HeadExpert | Pool]:
        """By name what answers: each expert, and their pool."""
        return {**self.experts, **({} if self.pool is None else {"pooled": self.pool})}

    @property
    def served(self) -> ServedExperts:
        """The experts that an artifact keeps: those in the pool, and the one that answers."""
        weights = {} if self.pool is None else self.pool.weights
        kept = {name: of for name, of in self.experts.items() if not weights or name in {*weights, self.choice.name}}
        if not any(reads_states(of.source) for of in kept.values()):  # how familiar an input is takes states
            kept = dict(self.experts)
        return ServedExperts(kept, weights, {name: self.familiar[name] for name in kept if name in self.familiar})

    def manifest_fields(self, encoder: EncoderRecord | None) -> dict[str, Any]:
        """Return what the manifest says of them; ``encoder``: that one of them reads."""
        served, choice = self.served, self.choice
        names = {"map", "pooled", *served.heads}
        compares = FamiliarityRecord(layers=(), rows=len(self.labelled), false_alarms=self.false_alarms or 0.5)
        return {
            "prior": None,
            "most_options": self.labelled.most_options,
            **expert_fields(served, {name: len(of.places) for name, of in self.experts.items()}, encoder),
            "familiarity": compares if self.false_alarms else None,
            "calibration": self.calibration,
            "predictives": {name: record for name, record in self.predictives.items() if name in names},
            "recommended": RecommendedRecord(
                predictive=choice.name,  # type: ignore[arg-type]
                reason=choice.reason,
                chosen_by="calibration",
                table={name: {"nll": nll} for name, nll in choice.nll.items()},
            ),
        }

    def kept_rows(self) -> KeptRows:
        """Return the labelled rows as an artifact keeps them."""
        others: dict[LogProbSource, torch.Tensor] = {}
        if self.zero_shot is not None:
            others["zero_shot"] = self.zero_shot.held_out
        return KeptRows.of({name: self.experts[name] for name in self.served.heads}, self.labelled, others, self.pool)


def fit_experts(
    names: Sequence[HeadSource], outputs: Outputs, labelled: Labelled, seed: int, progress: Progress
) -> dict[str, HeadExpert]:
    """Return the named experts, fitted on labelled rows.

    Raises:
        DataError: rows that no head can be fitted on.
    """

    def fitted(name: HeadSource) -> HeadExpert:
        return fit_head(name, outputs, labelled, name, offset="zero_shot" if name in CORRECTING else None, seed=seed)

    return _each(names, fitted, progress)


def judged(
    labelled: Labelled,
    experts: Mapping[str, HeadExpert],
    zero_shot: AsGiven | None,
    pool: Pool | None,
    settings: FitSettings,
) -> FittedHeads:
    """Return what the experts' held-out answers decide."""
    wanted = settings.calibration
    held_out = dict[str, PosteriorPredictive]()
    if zero_shot is not None:
        held_out["map"] = point(zero_shot.held_out)
    answering: dict[str, HeadExpert | Pool] = {**experts}
    if pool is not None:
        answering["pooled"] = pool
    for name, expert in answering.items():
        held_out[name] = point(expert.held_out, labelled.likelihood)
    records, scores = recorded(wanted, held_out, labelled.labels, 1, OUT_OF_FOLD)
    costs = costs_of(answering, {} if pool is None else pool.weights, adapter=False)
    candidates: dict[str, Expert] = {**answering}
    if zero_shot is not None and pool is not None and "zero_shot" in pool.experts:
        # Few labels tell the pool from the model's own answer, and not its members from each other.
        candidates, costs = {"map": zero_shot, "pooled": pool}, {"map": 1.0, "pooled": 1.0}
    losses = {name: losses_of(expert.held_out, labelled) for name, expert in candidates.items()}
    choice = choose(losses, costs, labelled.folds, labelled.groups)
    rate = wanted.unfamiliar_rate
    familiar = {name: familiarity_of(of) for name, of in experts.items() if rate and reads_states(of.source)}
    return FittedHeads(
        labelled,
        experts,
        zero_shot,
        pool,
        choice,
        records,
        calibration_record(wanted, labelled.groups, OUT_OF_FOLD),
        scores,
        familiar,
        false_alarms(rate, len(labelled)) if familiar else 0.0,
    )


def fit_heads(
    names: Sequence[HeadSource],
    outputs: Outputs,
    labelled: Labelled,
    settings: FitSettings,
    progress: Progress,
) -> FittedHeads:
    """Return heads of labelled rows with everything that their held-out answers decide; errors as ``fit_experts``."""
    zero_shot = as_given("zero_shot", outputs, labelled) if "zero_shot" in outputs.log_probs else None
    experts = fit_experts(names, outputs, labelled, settings.seed, progress)
    members = _members(experts, zero_shot)
    pool = fit_pool(members, labelled) if len(members) > 1 else None
    return judged(labelled, experts, zero_shot, pool, settings)


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
    return judged(together, experts, zero_shot, _moved(heads.pool, _members(experts, zero_shot), together), settings)


def forgotten(heads: FittedHeads, rows: torch.Tensor, settings: FitSettings, progress: Progress) -> FittedHeads:
    """Return heads that never had some rows, (some,) int64, under the precisions as fitted."""
    kept = torch.ones(len(heads.labelled), dtype=torch.bool).index_fill(0, rows, False)
    experts = _each(tuple(heads.experts), lambda name: heads.experts[name].forget(rows), progress)
    zero_shot = heads.zero_shot
    if zero_shot is not None:
        zero_shot = replace(zero_shot, held_out=zero_shot.held_out[kept])
    left = heads.labelled.take(kept)
    return judged(left, experts, zero_shot, _moved(heads.pool, _members(experts, zero_shot), left), settings)


def _members(experts: Mapping[str, HeadExpert], zero_shot: AsGiven | None) -> dict[str, Expert]:
    """Return the members of the pool: the heads, and the answer that one of them corrects."""
    own = {"zero_shot": zero_shot} if zero_shot is not None and not experts.keys().isdisjoint(CORRECTING) else {}
    return {**experts, **own}


def _moved(pool: Pool | None, experts: Mapping[str, Expert], labelled: Labelled) -> Pool | None:
    return None if pool is None else pool.with_experts(experts, labelled)


def _each(names: Sequence[Named], work: Callable[[Named], HeadExpert], progress: Progress) -> dict[str, HeadExpert]:
    """Return what work gives of each expert by its name, under a bar."""
    experts = dict[str, HeadExpert]()
    try:
        for name in progress.track(names, "heads"):
            experts[name] = work(name)
    except HeadError as error:
        raise DataError(f"no head can be fitted on these rows: {error}") from error
    return experts
