"""Labels that come after a fit: how they move its heads, and whether they help. Nothing is trained.

Every head learns them exactly, beside the rows that it was fitted on: precisions, temperatures and the weights of the
pool stay as fitted (``laplora.experts.of_head``). Learning always begins at what was packaged, with the labels of all
rows given: one that is left out was never there. ``map``, ``temperature`` and ``laplace``, which no label moves, keep
everything; thresholds, sets and scores of the others come from the rows before and the new ones together, each answered
without its fold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import call
from typing import Any

import torch

from laplora.answers.comparison import Comparison, compare
from laplora.answers.review_scores import ReviewScores
from laplora.artifact.head_files import KeptRows, expert_fields
from laplora.artifact.label_changes import Relabelling
from laplora.artifact.manifest import Manifest, RecommendedRecord
from laplora.classifier import Classifier, batches
from laplora.decisions.wanted import Costs
from laplora.errors import ConfigError, DataError, warn
from laplora.execution.progress import Progress, Silent
from laplora.experts.adapter import AsGiven, of_rows
from laplora.experts.base import Expert, Labelled, Outputs, losses_of
from laplora.experts.familiar import familiarity_of
from laplora.experts.laplace import Laplace
from laplora.experts.of_head import HeadExpert
from laplora.features.outputs import LogProbSource
from laplora.fitting.adapted_experts import MOST
from laplora.fitting.calibrate import (
    OUT_OF_FOLD,
    Calibrated,
    recommended_by,
    recorded,
    warn_of_nothing_accepted,
    with_rules,
)
from laplora.fitting.fit import Fit
from laplora.fitting.rows import FEW_CALIBRATION_ROWS, check_independent, groups_of, warn_of_conflicts
from laplora.head import HeadError
from laplora.head.folds import folds_of_new
from laplora.metrics.scores import evaluate_probs
from laplora.pool.choice import costs_of
from laplora.pool.pool import Pool
from laplora.pool.served import POOLED, ServedExperts
from laplora.predictive.kinds import PredictiveName
from laplora.predictor import Predictor
from laplora.prompts.examples import Example, label_tensor
from laplora.settings import CalibrationSettings

#: Runs a pass through the model: at once, or between a server's requests.
Run = Callable[[Callable[[], Any]], Any]
#: The name of the rows behind an artifact's thresholds if it learned from later labels.
LABELS = "labels"
#: Rows that run together.
_BATCH = 8


@dataclass(frozen=True)
class Learned:
    """An artifact's parts after it learned from new labels.

    Attributes:
        kept: all labelled rows, the new ones behind those before; experts: the heads with their pool.
        honest: by name, heads and pool with their answers to the rows, each without its fold.
        calibrated, scores: of every predictive, those that no label moves as packaged.
        metrics: of the new rows, by predictive that moved, each answered by what was fitted without it.
        further: what else the manifest says, and page: the report, both of other labels alone.
    """

    kept: KeptRows
    experts: ServedExperts
    honest: Mapping[PredictiveName, HeadExpert | Pool]
    calibrated: Calibrated
    scores: dict[str, ReviewScores]
    comparison: Comparison
    metrics: dict[str, Any]
    further: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""

    def fields(self, packaged: Manifest) -> dict[str, Any]:
        """Return what the manifest says otherwise than that of the packaged artifact, but for metrics and data."""
        rows = {name: len(of.places) for name, of in self.kept.experts.items()}
        compared = packaged.familiarity
        if compared is not None and self.experts.familiar:
            compared = compared.model_copy(update={"rows": len(self.kept.labelled)})
        heads = expert_fields(self.experts, rows, packaged.encoder)
        return {**dict(self.calibrated), "experts": heads["experts"], "familiarity": compared, **self.further}


class LoadedClassifier(Classifier):
    """The classifier of a loaded artifact, whose model was checked when it was loaded."""

    def __init__(self, predictor: Predictor, labels: tuple[str, ...] | None = None) -> None:
        """Take the predictor's model, tokenizer and prompt as they are; ``labels``: None: the artifact's."""
        manifest = predictor.artifact.manifest
        self.model, self.tokenizer = predictor.adapted.model, predictor.tokenizer
        self.labels = self.verbalizers = labels or manifest.labels
        self.template, self.max_tokens = manifest.template.template(), manifest.max_tokens
        self.readout = predictor.adapted.readout
        self.pad_token_id = predictor.tokenizer.pad_token_id


def learn(
    packaged: Predictor,
    kept: KeptRows,
    examples: Sequence[Example],
    *,
    run: Run = call,
    most_tokens: int | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Return what labelled rows make of an artifact.

    Args:
        packaged: the artifact as it was packaged; kept: its labelled rows.
        examples: with labels; copies of the artifact's own rows are left out, for a label would count twice, and judge
            an answer that knows it. Rows of which it keeps no features may not be among them.
        run: runs each pass through the model, one batch of rows in it.
        most_tokens: of a batch, padded, as ``Predictor.device_tokens`` counts; a row with more runs alone. None: any.

    Raises:
        DataError: too few rows, or rows that no head fits.
        ConfigError: no head that labels could move, or more rows than heads learn.
        NonFiniteError: an answer that is not finite.
    """
    manifest, say, classifier = packaged.artifact.manifest, progress or Silent(), LoadedClassifier(packaged)
    check_count(len(examples))
    wanted = rules_of(manifest)
    check_independent(examples, wanted.guarantee)
    warn_of_conflicts(classifier, examples)
    moved = [name for name in manifest.predictives if packaged.experts.members(name)]
    if not moved:
        raise ConfigError("the artifact has no head that labels could move: fit it with predictives.conditioned on")
    if (len(kept.labelled) + len(examples)) * len(manifest.labels) > MOST:
        raise ConfigError(f"{len(examples)} further rows are more than heads learn: {MOST:,} rows times labels in all")
    before, old = manifest.recommended.predictive, kept.labelled
    outputs = outputs_of(packaged, examples, [*moved, before], run, most_tokens, say)
    copies = torch.stack([of.copies(outputs).any(1) for of in kept.experts.values()]).any(0)
    if bool(copies.any()):
        warn(f"{int(copies.sum())} rows are copies of rows that the artifact was fitted on, and are left out")
        outputs, examples = outputs.take(~copies), [examples[i] for i in (~copies).nonzero()[:, 0].tolist()]
        check_count(len(examples), "labelled rows that are no copies of the artifact's own")
    groups = old.groups.max() + 1 + groups_of(classifier, examples)
    new = Labelled(
        label_tensor(examples, packaged.class_count),
        outputs.class_mask,
        groups,
        folds_of_new(old.folds[old.honest], len(examples), old.groups[old.honest], groups),
        torch.ones(len(examples), dtype=torch.bool),
        old.likelihood,
    )
    try:
        heads = {name: kept.experts[name].learn(outputs, new) for name in say.track(list(kept.experts), "heads")}
    except HeadError as error:
        raise DataError(f"the heads cannot learn these rows: {error}") from error
    rows = KeptRows(heads, old.joined(new), _continued(kept.log_probs, outputs), kept.by_fold)
    honest = honest_answers(manifest, rows)
    calibrated, scores = _calibrated(packaged, wanted, rows, honest)
    answers = {name: of.held_out[len(old) :] for name, of in honest.items()}
    after = before if before in moved else POOLED if POOLED in moved else moved[0]
    if before in moved:  # as a fold's old rows are no part of the answers after, they are none of those before
        unlearned = {name: kept.experts[name].before(of) for name, of in heads.items()}
        known = honest_answers(manifest, replace(rows, experts=unlearned))[before].held_out[len(old) :]
    else:
        known = _answering(before, packaged).log_probs(outputs)
    comparison = compare((before, known), (after, answers[after]), new, manifest.calibration.folds)
    labels, several = new.questions
    groups, ordered = new.groups.repeat_interleave(several), manifest.calibration.ordered
    metrics = {
        str(name): evaluate_probs(of_rows(logs, new.likelihood).probs, labels, groups=groups, ordered=ordered).to_json()
        for name, logs in answers.items()
    }
    familiar = {name: familiarity_of(of) for name, of in heads.items() if name in packaged.experts.familiar}
    served = replace(packaged.experts, heads=heads, familiar=familiar)
    return Learned(rows, served, honest, calibrated, scores, comparison, metrics)


def learned_fit(fit: Fit, learned: Learned) -> Fit:
    """Return a fit of an adapter whose heads know further labels; what no label moves answers for none of these."""
    further = len(learned.kept.labelled) - len(fit.labelled)
    experts: dict[str, Expert] = {}
    for name, one in fit.experts.items():
        if name == "adapter" and isinstance(one, AsGiven):
            experts[name] = replace(one, held_out=learned.kept.log_probs[one.source])
        elif isinstance(one, AsGiven | Laplace):
            nothing = one.held_out.new_full((further, one.held_out.shape[1]), torch.nan)
            experts[name] = replace(one, held_out=torch.cat([one.held_out, nothing]))
    experts |= {str(name): one for name, one in learned.honest.items()}
    scores: Any = learned.scores
    return replace(fit, labelled=learned.kept.labelled, experts=experts, calibrated=learned.calibrated, scores=scores)


def check_count(rows: int, what: str = "labelled rows") -> None:
    """Raise DataError for too few new rows."""
    if rows < FEW_CALIBRATION_ROWS:
        raise DataError(
            f"{rows} {what} are fewer than {FEW_CALIBRATION_ROWS}: what they say would be noise; collect more"
        )


def rules_of(manifest: Manifest, to: Relabelling | None = None) -> CalibrationSettings:
    """Return by what the artifact's thresholds and sets were set; ``to``: the labels that they are to be of."""
    rule = next(iter(manifest.predictives.values())).thresholds.review
    aim: Any = rule.wanted if to is None else to.wanted(rule.wanted)
    return CalibrationSettings(
        **({"costs": aim} if isinstance(aim, Costs) else {"target_risk": aim}),
        guarantee=rule.guarantee,
        coverage=manifest.calibration.coverage,
        ordered=manifest.calibration.ordered,
        folds=manifest.calibration.folds,
        unfamiliar_rate=manifest.familiarity.false_alarms if manifest.familiarity else 0.0,
        **({} if rule.confidence is None else {"confidence": rule.confidence}),
    )


def outputs_of(
    packaged: Predictor,
    examples: Sequence[Example],
    names: Sequence[PredictiveName],
    run: Run,
    most_tokens: int | None,
    progress: Progress,
) -> Outputs:
    """Return what the experts of predictives read of rows, in their order."""
    rows = [packaged.encode(example.fields, truncate=True) for example in examples]
    most = None if most_tokens is None else (most_tokens, packaged.device_tokens)
    places, parts = list[int](), list[Outputs]()
    for index in progress.track(batches(rows, _BATCH, most), "labelled rows"):
        parts.append(run(partial(packaged.outputs, [rows[i] for i in index], names)))
        places += index
    return Outputs.joined(*parts).take(torch.tensor(places).argsort())


def _continued(known: Mapping[LogProbSource, torch.Tensor], outputs: Outputs) -> dict[LogProbSource, torch.Tensor]:
    """Return log probabilities of passes with those of further rows, NaN where nobody needs them."""
    nothing = torch.full(outputs.class_mask.shape, torch.nan, dtype=torch.float64)
    return {source: torch.cat([values, outputs.log_probs.get(source, nothing)]) for source, values in known.items()}


def honest_answers(manifest: Manifest, rows: KeptRows) -> dict[PredictiveName, HeadExpert | Pool]:
    """Return by name what labels move, with its answers to all rows, each without its fold."""
    experts: dict[Any, HeadExpert | Pool] = {**rows.experts}
    if manifest.pool:
        kind, weights = rows.labelled.likelihood, {str(name): weight for name, weight in manifest.pool.items()}
        members: dict[str, Expert] = {**rows.experts}
        models = {source: AsGiven(source, values, kind) for source, values in rows.log_probs.items()}
        members |= {source: of for source, of in models.items() if source in weights}
        pool = Pool(members, weights, rows.by_fold, torch.empty(0), kind)
        experts[POOLED] = pool.with_experts(members, rows.labelled)
    return {name: experts[name] for name in manifest.predictives if name in experts}


def _answering(name: PredictiveName, packaged: Predictor) -> Expert:
    """Return what a predictive answers by that no label moves."""
    manifest, nothing = packaged.artifact.manifest, torch.empty(0)
    if name == "laplace":
        return Laplace(nothing, manifest.likelihood)
    tempered = manifest.predictives[name].temperature if name == "temperature" else None
    return AsGiven("adapter" if manifest.has_adapter else "zero_shot", nothing, manifest.likelihood, tempered)


def _calibrated(
    packaged: Predictor,
    wanted: CalibrationSettings,
    rows: KeptRows,
    experts: Mapping[PredictiveName, HeadExpert | Pool],
) -> tuple[Calibrated, dict[str, ReviewScores]]:
    """Return every predictive's thresholds, sets and scores, and what answers by default."""
    manifest, labelled = packaged.artifact.manifest, rows.labelled
    honest, kind = labelled.take(labelled.honest), labelled.likelihood
    held_out = {name: of_rows(of.held_out[labelled.honest], kind) for name, of in experts.items()}
    labels, several = honest.questions
    bounded = wanted.guarantee == "upper_bound"  # by MAP's mistakes, which no label moves
    records, scores = recorded(
        wanted.model_copy(update={"guarantee": "empirical"}) if bounded else wanted, held_out, labels, several, LABELS
    )
    records = with_rules(wanted, records, scores, manifest.labels)
    predictives, kept = dict(manifest.predictives), dict(packaged.review_scores)
    for name, record in records.items():
        old = predictives[name].thresholds
        thresholds = old if bounded else record.thresholds.model_copy(update={"flags": old.flags})
        predictives[name] = record.model_copy(update={"thresholds": thresholds})
        kept[str(name)] = kept[str(name)] if bounded else scores[name]
    calibrated = Calibrated(
        calibration=manifest.calibration.model_copy(update={"split": LABELS, "rows": len(honest)}),
        predictives=predictives,
        recommended=_recommended(manifest, rows, experts),
    )
    warn_of_nothing_accepted(calibrated, kept)
    return calibrated, kept


def _recommended(
    manifest: Manifest, rows: KeptRows, experts: Mapping[PredictiveName, HeadExpert | Pool]
) -> RecommendedRecord:
    """Return what answers by default: what a configuration named, else what labels moved or temperature scaling."""
    before, labelled = manifest.recommended, rows.labelled
    if before.chosen_by == "configuration":
        return before
    # Adapters of folds know the labels that judge what reads their states.
    out = {"conditioned"} if manifest.calibration.split == OUT_OF_FOLD else set[str]()
    losses = {str(name): losses_of(of.held_out, labelled)[labelled.honest] for name, of in experts.items()}
    if "temperature" in manifest.predictives:
        temperature = manifest.predictives["temperature"].temperature
        tempered = AsGiven("adapter", torch.empty(0), labelled.likelihood, temperature)
        logs = tempered.log_probs(Outputs(labelled.class_mask, rows.log_probs))
        losses["temperature"] = losses_of(logs, labelled)[labelled.honest]
    candidates = {name: column for name, column in losses.items() if name not in out}
    costs = costs_of(
        candidates, {str(name): weight for name, weight in manifest.pool.items()}, adapter=manifest.has_adapter
    )
    recommended = recommended_by("auto", candidates, costs, labelled.take(labelled.honest))
    return recommended.model_copy(update={"chosen_by": "labels"})
