"""The experts of a model with an adapter, and what their honest answers decide.

``adapter``, ``temperature``, ``laplace`` and ``conditioned`` stand on the adapter, and are honest in the rows that
trained none. The heads that do not look at it are trained by all labelled rows, and honest in all. ``pooled`` is
their pool. Thresholds, label sets, scores and the choice of what is served rest on rows where every expert is honest.

If adapters of folds answer every row (``OUT_OF_FOLD``), ``conditioned`` is in no pool, and never chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from laplora.answers.review_scores import ReviewScores
from laplora.artifact.manifest import RecommendedRecord
from laplora.classifier import Classifier
from laplora.errors import ConfigError, DataError, LaploraError, warn
from laplora.execution.progress import Progress
from laplora.experts.adapter import AsGiven, of_rows
from laplora.experts.base import Blocks, Expert, FeatureSource, Labelled, Outputs, losses_of
from laplora.experts.laplace import Laplace, logged
from laplora.experts.of_head import HeadExpert, fit_head
from laplora.features.expert_passes import ExpertPasses, expert_passes
from laplora.features.store import Store, kept_outputs
from laplora.fitting.calibrate import (
    HELD_OUT,
    Calibrated,
    calibration_record,
    fit_temperature_of,
    held_out_entropy,
    out_of_fold,
    prior_without,
    recommended_by,
    recorded,
    warn_of_nothing_accepted,
    with_rules,
)
from laplora.fitting.fitted_heads import fit_experts
from laplora.fitting.projected import SplitOutputs
from laplora.fitting.rows import shared_folds
from laplora.head import HeadError
from laplora.linearised import class_log_probs
from laplora.pool.choice import costs_of
from laplora.pool.fine_tuning import FineTuning, fine_tuning
from laplora.pool.pool import Pool, fit_pool
from laplora.predictive.kinds import PredictiveName
from laplora.prompts.examples import Example
from laplora.readouts.label_sequences import LabelSequences
from laplora.settings import FitSettings

#: Rows times contrasts up to which a fit conditions: minutes of a processor at this, by the width of the states.
MOST = 300_000


class Answering(NamedTuple):
    """The predictives of a model with an adapter.

    Attributes:
        settings: without what could not be fitted.
        experts: by name, ``pooled`` last.
        calibrated, scores: thresholds, sets, what is served, and the review scores of the honest rows.
        fine_tuning: what it gained; None without a head that does not look at the adapter.
    """

    settings: FitSettings
    experts: Mapping[str, Expert]
    calibrated: Calibrated
    scores: dict[PredictiveName, ReviewScores]
    fine_tuning: FineTuning | None


@dataclass(frozen=True)
class Heads:
    """Experts that do not look at an adapter, with the passes that they read."""

    passes: ExpertPasses
    experts: Mapping[str, HeadExpert]


def fit_beside(
    classifier: Classifier,
    rows: Sequence[Example],
    labelled: Labelled,
    settings: FitSettings,
    store: Store,
    progress: Progress,
) -> Heads | None:
    """Return the heads that settings name beside an adapter, which all labelled rows train; None where they name none.

    Raises:
        ConfigError, ModelError, DownloadError: as of ``expert_passes``.
        DataError: rows that no head can be fitted on.
    """
    if not settings.experts.names:
        return None
    passes = expert_passes(classifier, settings.experts.names, settings.experts.encoder, progress.say)
    outputs = kept_outputs(passes, rows, store, progress)
    return Heads(passes, fit_experts(passes.names, outputs, labelled, settings.seed, progress))


def labelled_rows(
    classifier: Classifier, train: Sequence[Example], honest: Sequence[Example], settings: FitSettings
) -> tuple[Sequence[Example], Labelled]:
    """Return the rows that the experts know: of the training rows those in no group of the honest ones, and the honest.

    Training rows are left out where no head is fitted beside the adapter, for they teach no other.
    """
    rows = train if settings.experts.names else ()
    folds = settings.calibration.folds
    return (*rows, *honest), shared_folds(classifier, rows, honest, folds, settings.seed)


def fit_answering(
    settings: FitSettings,
    outputs: SplitOutputs,
    labelled: Labelled,
    beside: Heads | None,
    labels: Sequence[str],
    split_name: str = HELD_OUT,
) -> Answering:
    """Return the experts of a fit and what their honest answers decide; warns where what is served accepts nothing.

    Args:
        outputs: of the honest rows; labelled: all rows that some expert knows; labels: their names.
        split_name: ``HELD_OUT``, or ``OUT_OF_FOLD`` where each row is seen by the adapter of its fold.

    Raises:
        ConfigError: as ``without_conditioning``.
        DataError: rows of fewer than two folds.
    """
    split, prior_of = outputs.split, prior_without(settings, outputs)
    read, heads = outputs_of_split(outputs), beside.experts if beside else {}
    conditioned = None
    if settings.predictives.conditioned:
        try:
            conditioned = fit_conditioned(read, labelled, settings.seed)
        except (LaploraError, RuntimeError) as error:  # RuntimeError: of LAPACK, or no memory
            settings = without_conditioning(settings, error)
    of_split: list[PredictiveName] = [name for name in settings.predictives.names if name != "conditioned"]
    held_out = out_of_fold(settings, outputs, prior_of, of_split)
    temperatures: dict[PredictiveName, float] = {name: fit_temperature_of(outputs, name) for name in of_split}

    def among_all(values: torch.Tensor) -> torch.Tensor:
        spread = values.new_full((len(labelled), values.shape[1]), torch.nan)
        spread[labelled.honest] = values
        return spread

    def logs(name: PredictiveName) -> torch.Tensor:
        return among_all(logged(held_out[name].probs, split.class_mask, split.together))

    kind = labelled.likelihood
    experts: dict[str, Expert] = {"adapter": AsGiven("adapter", among_all(read.log_probs["adapter"]), kind)}
    if "temperature" in held_out:
        experts["temperature"] = AsGiven("adapter", logs("temperature"), kind, temperatures["temperature"])
    if conditioned is not None:
        experts["conditioned"] = conditioned
    experts |= {"laplace": Laplace(logs("laplace"), kind), **heads}
    # States of the adapters that judge a fold know its labels.
    in_pool = ["adapter", *(["conditioned"] if conditioned and split_name == HELD_OUT else []), *heads]
    if len(in_pool) > 1:
        experts["pooled"] = fit_pool({name: experts[name] for name in in_pool}, labelled)
    names: list[PredictiveName] = ["map", *(name for name in experts if name != "adapter")]  # type: ignore[list-item]
    for name in names:
        if name not in held_out:
            held_out[name] = of_rows(experts[name].held_out[labelled.honest], kind)
    records, scores = recorded(
        settings.calibration,
        {name: held_out[name] for name in names},
        split.labels,
        split.together,
        split_name,
        entropies={name: held_out_entropy(settings, outputs, name, prior_of) for name in of_split},
        temperatures=temperatures,
        label_mass=split.label_mass,
    )
    records = with_rules(settings.calibration, records, scores, labels)
    out = set() if split_name == HELD_OUT else {"conditioned"}
    recommended, gained = _chosen(settings.predictives.serve, experts, [*heads], labelled, out)
    record = calibration_record(settings.calibration, split.input_groups, split_name)
    calibrated = Calibrated(calibration=record, predictives=records, recommended=recommended)
    warn_of_nothing_accepted(calibrated, scores)
    return Answering(settings, experts, calibrated, scores, gained)


def _chosen(
    serve: str, experts: Mapping[str, Expert], beside: Sequence[str], labelled: Labelled, out: Collection[str]
) -> tuple[RecommendedRecord, FineTuning | None]:
    """Return what answers by default, and what fine-tuning gained by it.

    Args:
        serve: ``auto``, or what the configuration names; beside: heads that do not look at the adapter; out: experts
            whose losses are no honest ones.
    """
    honest, weights = labelled.honest, pool.weights if isinstance(pool := experts.get("pooled"), Pool) else {}
    losses = {
        "map" if name == "adapter" else name: losses_of(of.held_out, labelled)[honest] for name, of in experts.items()
    }
    if serve not in ("auto", *losses):
        raise ConfigError(f"serve: {serve} is not there: this fit has {list(losses)}; experts.names adds heads")
    candidates = {name: column for name, column in losses.items() if name not in out}
    some = labelled.take(honest)
    chosen = recommended_by(serve, candidates, costs_of(candidates, weights, adapter=True), some)
    if not beside:
        return chosen, None
    without = {name: losses[name] for name in beside}
    if len(beside) > 1:
        alone = fit_pool({name: experts[name] for name in beside}, labelled)
        without["the pool of the heads alone"] = losses_of(alone.held_out, labelled)[honest]
    return chosen, fine_tuning(chosen.predictive, losses[chosen.predictive], without, some.groups)


def fit_conditioned(honest: Outputs, labelled: Labelled, seed: int) -> HeadExpert:
    """Return ``conditioned``: the adapter's answer at a temperature, corrected by a head on the state it is read from.

    Args:
        honest: outputs of the honest ones of the labelled rows.

    Raises:
        DataError: rows that no head can be fitted on.
    """
    rows = labelled.take(labelled.honest)
    try:
        head = fit_head("conditioned", honest, rows, "last_state", offset="adapter", temper=True, seed=seed)
    except HeadError as error:
        raise DataError(f"no head fits the labels: {error}") from error
    return replace(head, places=labelled.honest.nonzero()[head.places, 0], rows=len(labelled))


def outputs_of_split(outputs: SplitOutputs, *, covariance: bool = False) -> Outputs:
    """Return what the experts of an adapter read of rows; with the covariance also what Laplace's average does."""
    split, several = outputs.split, outputs.split.together
    states: dict[FeatureSource, Blocks] = {} if split.last is None else {"last_state": {"last": split.last}}
    spread = outputs.fitted.covariance() if covariance else None
    if several == 1:
        logs = class_log_probs(split.logits, split.class_mask)
        return Outputs(split.class_mask, {"adapter": logs}, states, spread)
    logits = (split.logits[:, 1] - split.logits[:, 0]).double().view(-1, several)
    mask = torch.ones(logits.shape, dtype=torch.bool)
    if spread is not None:  # the contrast of a binary row has half the variance of its label's logit
        spread = torch.diag_embed(2 * spread.view(-1, several))
    return Outputs(mask, {"adapter": logits}, states, spread)


def possible_conditioning(classifier: Classifier, settings: FitSettings, rows: int) -> FitSettings:
    """Return settings in which labels of so many rows condition only where they can; warns of why they cannot.

    Raises:
        ConfigError: settings that ask to serve what cannot be.
    """
    if not settings.predictives.conditioned:
        return settings
    try:
        check_conditioning(classifier, rows)
    except ConfigError as error:
        return without_conditioning(settings, error)
    return settings


def without_conditioning(settings: FitSettings, error: Exception) -> FitSettings:
    """Return settings in which no labels condition, and say why; ConfigError where these are to be served."""
    if settings.predictives.serve == "conditioned":
        raise ConfigError(f"serve: conditioned cannot be: {error}") from error
    warn(f"conditioned is off: {error}")
    off = settings.predictives.model_copy(update={"conditioned": False})
    return settings.model_copy(update={"predictives": off})


def check_conditioning(classifier: Classifier, rows: int) -> None:
    """Raise ConfigError where labels of so many rows cannot condition."""
    readout = classifier.readout
    directions = readout.class_count - (readout.likelihood == "categorical")
    if isinstance(readout, LabelSequences):
        raise ConfigError("the logits of label sequences are read from several states")
    if rows * directions > MOST:
        raise ConfigError(f"{rows} labelled rows of {directions} contrasts are more than {MOST:,} in all")
