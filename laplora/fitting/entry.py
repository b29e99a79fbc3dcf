"""``laplora.fit``: from a classifier and rows to a calibrated posterior, in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from laplora.answers.golden_inputs import COUNT
from laplora.classifier import Classifier
from laplora.errors import ConfigError, warn
from laplora.execution.progress import Progress, shown_by
from laplora.features.expert_passes import ExpertPasses, expert_passes
from laplora.features.store import Forgetful, Store, kept_outputs
from laplora.fitting.calibrated import CalibratedPosterior
from laplora.fitting.fit import fit_rows
from laplora.fitting.fitted_heads import fit_heads
from laplora.fitting.heads import HeadsPosterior
from laplora.fitting.rows import (
    CALIBRATION_SHARE,
    FEW_CALIBRATION_ROWS,
    absent_labels,
    check_labels,
    check_ordered,
    groups_of,
    read_rows,
    shared_folds,
    split_rows,
    warn_of_conflicts,
    without_twins,
)
from laplora.predictive.lora_weights import lora_parameters, read_weights
from laplora.prompts.examples import Example
from laplora.prompts.questions import check_question
from laplora.settings import FitSettings

#: Median probability of all labels after the prompt, below which prompt or labels are hardly those of the training.
_LITTLE_MASS = 0.01


def fit(
    classifier: Classifier,
    rows: Any,
    calibration: Any = None,
    *,
    settings: FitSettings | None = None,
    initial_adapter: str | Path | Mapping[str, torch.Tensor] | None = None,
    label_field: str = "label",
    groups: str | None = None,
    progress: bool | Progress = True,
    store: Store | None = None,
) -> CalibratedPosterior | HeadsPosterior:
    """Return a classifier's posterior over its weights, calibrated: probabilities, sets and decisions to act on.

    For a model as it is, without adapter or trained head, the weights are those of heads on its states. Nothing is
    calibrated on rows kept apart then: every row trains, and is judged by heads without its fold.

    Args:
        rows: the labelled rows that the model was fine-tuned on: dicts with the template's fields and a label, in a
            list or an iterator; a pandas data frame; a ``datasets.Dataset``. For a model as it is, all labelled rows.
        calibration: labelled rows that it was **not** fine-tuned on. They choose the prior precision, the
            temperatures, the thresholds and the label sets, each cross-fitted, and would promise too much of rows that
            it knows. ``"split"`` says that it was fine-tuned on none of ``rows``: a fifth, or a share between 0 and 1,
            is held out of the curvature and calibrates. For a model as it is: None.
        settings: of the posterior, the calibration and the predictives.
        initial_adapter: folder, or weights by block name, of the LoRA adapter before fine-tuning, the centre of the
            prior. None: zero; it matters for a prior chosen by evidence alone.
        label_field: name of the label in a row: a label's name, or its number from 0.
        groups: name of the field whose value rows share that belong together, such as near-duplicates or turns of a
            conversation; a row without a value is of no group. Equal prompts are a group without being told, up to
            case and white space. No fold parts a group, intervals are over groups, and training rows of a calibration
            row's group are left out.
        progress: whether to show it; or what shows it.
        store: keeps the passes over the rows, so that a fit of the same model, rows and settings goes on from them.

    Raises:
        DataError: rows that cannot be used, a label without a row.
        LaploraWarning: what is off, or is worth less than it looks; shown whatever ``progress`` is.
        ConfigError: no calibration rows, or a setting that cannot work.
        ModelError, PriorError, NonFiniteError, FactorizationError: what cannot be fitted.
    """
    if not isinstance(classifier, Classifier):
        raise ConfigError(f"the first argument must be a laplora.Classifier, got {type(classifier).__name__}")
    if not isinstance(settings, FitSettings | None):
        raise ConfigError(
            f"settings must be a FitSettings, got {type(settings).__name__}: laplora.FitSettings.model_validate makes "
            "one of a dict"
        )
    settings = _declared(classifier, settings or FitSettings())
    settings.calibration.check(classifier.labels)
    if settings.question is not None:
        several = classifier.readout.likelihood == "bernoulli"
        check_question(settings.question, classifier.template, classifier.labels, several=several)
    shown = shown_by(progress)
    if not classifier.is_trained:
        if calibration is not None or initial_adapter is not None:
            raise ConfigError(
                f"calibration and initial_adapter are for a LoRA adapter or a trained head, and the "
                f"{type(classifier.model).__name__} has none: give all labelled rows as rows. If an adapter was merged "
                "into it, load the base and the adapter again, for its states know the labels that it was trained on"
            )
        labelled = read_rows(rows, classifier, label_field, groups=groups)
        # A letter is no class, and the right ones need not have stood at each; another model knows labels without rows.
        if classifier.template.answered:
            if absent := absent_labels(labelled, classifier.labels):
                warn(f"no row has the labels {absent[:8]}: how often they are taken for others, nothing here says")
        elif not classifier.template.takes_choices:
            check_labels(labelled, classifier.labels)
        return fit_as_it_is(classifier, labelled, settings, shown, store)
    if calibration is None:
        raise ConfigError(
            "there are no calibration rows: give rows that the model was not fine-tuned on; or calibration='split', "
            "which takes a fifth of the rows, if it was fine-tuned on none of them. Of rows that it knows, thresholds, "
            "label sets and familiarity promise more than they hold"
        )
    share = _share(calibration)
    train = read_rows(rows, classifier, label_field, groups=groups)
    check_labels(train, classifier.labels)
    if share:
        warn_of_conflicts(classifier, train)
        train, held_out = split_rows(train, settings.seed, groups_of(classifier, train), share)
        dropped = 0
        warn(
            f"{len(held_out)} of {len(train) + len(held_out)} rows calibrate. That the model was fine-tuned on none of "
            "them is taken on trust: nothing here can know"
        )
    else:
        held_out = read_rows(calibration, classifier, label_field, "calibration row", groups)
        train, dropped = without_twins(classifier, train, held_out)
    if len(held_out) < FEW_CALIBRATION_ROWS:
        warn(
            f"{len(held_out)} calibration rows are fewer than {FEW_CALIBRATION_ROWS}: the prior precision, the "
            "temperatures and the thresholds chosen on them are mostly noise"
        )
    fitted = fit_rows(
        classifier,
        train,
        held_out,
        settings,
        initial=_initial(classifier, initial_adapter),
        store=store,
        progress=shown,
    )
    data = {
        "source": "rows",
        "rows": {"train": len(train), "calibration": len(held_out)},
        "calibration": "split" if share else "given",
        **({"twins_dropped": dropped} if dropped else {}),
    }
    golden = tuple(dict(example.fields) for example in held_out[:COUNT])
    _warn_of_little_mass(fitted.calibration.label_mass)
    shown.say(f"answers by {fitted.calibrated.recommended.predictive}: {fitted.calibrated.recommended.reason}")
    if fitted.fine_tuning:
        shown.say(str(fitted.fine_tuning))
    return CalibratedPosterior(classifier, fitted, data, golden, shown)


def fit_as_it_is(
    classifier: Classifier,
    rows: tuple[Example, ...],
    settings: FitSettings,
    shown: Progress,
    store: Store | None = None,
    passes: ExpertPasses | None = None,
) -> HeadsPosterior:
    """Return heads on a model without adapter, fitted on all labelled rows; errors as of ``fit``.

    Args:
        passes: of the classifier; None: those that the settings name, loaded now.
    """
    if settings.predictives.serve != "auto" or settings.calibration.guarantee != "empirical":
        raise ConfigError(
            "predictives.serve and guarantee upper_bound are for a LoRA adapter or a trained head, and "
            f"the {type(classifier.model).__name__} has none: leave them out"
        )
    check_ordered(classifier, settings.calibration.ordered)
    warn_of_conflicts(classifier, rows)
    if len(rows) < FEW_CALIBRATION_ROWS:
        warn(
            f"{len(rows)} labelled rows are fewer than {FEW_CALIBRATION_ROWS}: thresholds set on them are mostly noise"
        )
    passes = passes or expert_passes(classifier, settings.experts.names, settings.experts.encoder, shown.say)
    start = time.monotonic()
    outputs = kept_outputs(passes, rows, store or Forgetful(), shown)
    seconds = time.monotonic() - start
    labelled = shared_folds(classifier, (), rows, settings.calibration.folds, settings.seed)
    heads = fit_heads(passes.names, outputs, labelled, settings, shown)
    data = {"source": "rows", "rows": {"labelled": len(rows)}, "pass_seconds": seconds}
    return HeadsPosterior(passes, heads, rows, settings, data, shown)


def _declared(classifier: Classifier, settings: FitSettings) -> FitSettings:
    """Return settings that declare the question of a classifier that has one; its levels have an order."""
    question = classifier.question
    if question is None or settings.question is not None:
        return settings
    ordered = settings.calibration.ordered or question.type == "score"
    calibration = settings.calibration.model_copy(update={"ordered": ordered})
    return settings.model_copy(update={"question": question, "calibration": calibration})


def _share(calibration: Any) -> float:
    """Return the share of the rows that is to calibrate; 0 where calibration rows are given."""
    share = CALIBRATION_SHARE if isinstance(calibration, str) and calibration == "split" else calibration
    if isinstance(share, str) or (isinstance(share, int | float) and not 0 < share < 1):
        raise ConfigError(f"calibration must be rows, 'split' or a share between 0 and 1, got {str(share)[:32]!r}")
    return share if isinstance(share, float) else 0.0


def _warn_of_little_mass(label_mass: torch.Tensor) -> None:
    """Warn where the model expects something else than a label after the prompt."""
    if (median := float(label_mass.median())) < _LITTLE_MASS:
        warn(
            f"the labels have {median:.1g} of the probability after the prompt, in the median: check that template and "
            "labels are those of the fine-tuning, to the last space"
        )


def _initial(
    classifier: Classifier, adapter: str | Path | Mapping[str, torch.Tensor] | None
) -> Mapping[str, torch.Tensor] | None:
    """Return the weights that the prior is centred on; ConfigError where given ones are not those of the adapter."""
    if isinstance(adapter, (str, Path)):
        return read_weights(classifier.model, Path(adapter))
    if adapter is not None:
        for name, parameter in lora_parameters(classifier.model).items():
            given = adapter.get(name)
            if given is None or given.shape != parameter.shape:
                what = "nothing" if given is None else str(tuple(given.shape))
                raise ConfigError(
                    f"initial_adapter needs the weights of every block, {name} of shape {tuple(parameter.shape)}, and "
                    f"has {what}: give those before training by block name, or the folder that they were saved in"
                )
    return adapter
