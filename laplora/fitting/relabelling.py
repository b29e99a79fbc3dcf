"""Other labels for the rows that an artifact keeps: heads fitted anew on their features, without a pass over them.

The rows of a label that is split get probabilities of its parts, by those that are given (benchmarks/label_changes).
These also draw which part counts as right: the most probable one is what the heads answer too, so few would be wrong.
Near-copies among given rows are one group; those of kept rows, whose texts no artifact has, are in folds of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from laplora.answers.comparison import Comparison, compare
from laplora.artifact.head_files import KeptRows
from laplora.artifact.label_changes import Relabelling, history_of
from laplora.artifact.readout_records import NoAnswerRecord
from laplora.errors import ConfigError, DataError
from laplora.execution.progress import Progress
from laplora.experts.base import Labelled, Outputs
from laplora.features.expert_passes import ExpertPasses
from laplora.fitting.adapted_experts import MOST
from laplora.fitting.calibrate import Calibrated
from laplora.fitting.cross_fitted import cross_fitted_report
from laplora.fitting.fitted_heads import FittedHeads, fit_heads, judged
from laplora.fitting.heads import HeadsPosterior
from laplora.fitting.learning import Learned, LoadedClassifier, honest_answers, outputs_of, rules_of
from laplora.fitting.rows import groups_with_copies, warn_of_conflicts
from laplora.head.fit import fit
from laplora.head.folds import fold_numbers
from laplora.linearised import targets_of
from laplora.predictor import Predictor
from laplora.prompts.examples import Example, label_tensor
from laplora.report.page import html
from laplora.report.verdict import in_words, judge
from laplora.settings import FitSettings

#: Rows, of different groups, that teach a new label at least: about one a fold.
FEWEST_OF_LABEL = 5
#: Rows of a label below which its frequency here may well be another one than in use.
SCARCE = 30


def relabelled(
    packaged: Predictor, kept: KeptRows, to: Relabelling, examples: Sequence[Example], progress: Progress, **how: Any
) -> Learned:
    """Return heads under other labels, of kept rows and given ones, whose copies these replace; errors as ``learn``."""
    manifest, classes, classifier = packaged.artifact.manifest, len(to.after), LoadedClassifier(packaged, to.after)
    if manifest.has_adapter or manifest.template.answered or classifier.template.takes_choices:
        what = "has an adapter or a trained head, which would have to be trained"
        what = what if manifest.has_adapter else "corrects another model's answers, or takes the choices of an input"
        raise ConfigError(f"its labels cannot change so: the artifact {what}. Fit all rows anew")
    seed, given, fields = manifest.config.get("seed"), None, classifier.template.fields
    settings = FitSettings(calibration=rules_of(manifest, to), seed=seed if isinstance(seed, int) else 0)
    try:
        settings.calibration.check(to.after)
    except ConfigError as error:
        raise ConfigError(f"{error}. Give target_risk or costs of the new labels with the changes") from None
    split = any(one.get("split") for one in history_of(manifest))
    if (kept.labelled.labels.is_floating_point() and not split) or any(one.target for one in examples):
        raise ConfigError("labels are probabilities here: fit all rows anew")
    if examples:
        warn_of_conflicts(classifier, examples)
        outputs = outputs_of(packaged, examples, [*manifest.experts], progress=progress, **how)
        given = outputs, label_tensor(examples, classes), groups_with_copies(classifier, examples)
    name = manifest.recommended.predictive
    known = kept.log_probs["zero_shot"] if name == "map" else honest_answers(manifest, kept)[name].held_out
    heads, right, comparison = fit_under(kept, (name, known), to, given, settings, progress)
    readout = NoAnswerRecord(kind="none", class_count=classes, side=classifier.readout.side)
    classifier.readout = readout.readout()
    # Rows are known by their numbers alone.
    rows = [Example(str(i), dict.fromkeys(fields, str(i)), label, classes) for i, label in enumerate(right.tolist())]
    passes = ExpertPasses(classifier, replace(packaged.passes, readout=classifier.readout, class_count=classes))
    labelled, notes = heads.labelled, cautions(heads, to.after)
    heads = replace(heads, labelled=replace(labelled, labels=right))
    posterior = HeadsPosterior(passes, heads, tuple(rows), settings, {}, progress)
    report = cross_fitted_report(posterior, packaged.artifact.name, "the artifact", {"labels": "changed"})
    report, heads = replace(report, suspects=None).without_texts(), replace(posterior.heads, labelled=labelled)
    progress.say("\n".join([in_words(report, verdict := judge(report), "").rstrip(), *notes]))
    report = replace(report, notes=[*report.notes, *notes])
    own = heads.manifest_fields(manifest.encoder) | {"most_options": manifest.most_options, "readout": readout}
    calibrated = Calibrated(**{part: own[part] for part in Calibrated.model_fields})
    found = heads.kept_rows(), heads.served, dict[Any, Any](), calibrated, dict[str, Any](heads.scores), comparison
    return Learned(*found, dict(report.methods), own, html(report, verdict))


def cautions(heads: FittedHeads, names: Sequence[str]) -> list[str]:
    """Return what a reader of figures of these rows should know: whose labels are the heads' own, and few rows."""
    targets, notes = targets_of(heads.labelled.labels, len(names)), list[str]()
    own = targets.amax(1) < 1 - 1e-9
    if count := int(own.sum()):
        notes.append(
            f"{count} of {len(own)} rows have labels that the model itself gave, drawn by its probabilities of the "
            "parts of a split: what is said of them is a guess until a person labels some"
        )
    counts = (targets > 1 - 1e-9).sum(0).tolist()
    if few := [f"{name[:64]!r} ({count})" for name, count in zip(names, counts, strict=True) if count < SCARCE]:
        notes.append(
            f"Labels with fewer than {SCARCE} rows: {', '.join(few[:8])}. If they are more frequent in use than here, "
            "more answers are wrong than these figures say"
        )
    return notes


def fit_under(
    kept: KeptRows, before: tuple[Any, Any], to: Relabelling, given: Any, settings: FitSettings, say: Progress
) -> tuple[FittedHeads, torch.Tensor, Comparison]:
    """Return heads of kept and given rows under other labels, and how answers to kept rows whose label stays differ.

    Between them (rows,) int64, what counts as right: a row's label, and of several one that is drawn by their
    probabilities.

    Labels that are merged count as one before too; added ones and parts of a split are one more label.

    Args:
        before: what answered, and its honest answers to the kept rows, (rows, labels before) log probabilities.
        given: what heads read of rows, their labels and their groups; None: no row.
    """
    old, classes, many = kept.labelled, len(to.after), 0 if given is None else len(given[1])
    if (len(old) + many) * classes > MOST:
        raise ConfigError(f"{len(old) + many} rows times {classes} labels are more than {MOST:,}: fit all rows anew")
    into = torch.zeros(len(to.before), classes, dtype=torch.float64)
    for row, place, label in zip(into, to.places, to.before, strict=True):
        row[[to.after.index(part) for part in to.changes.split[label]] if place < 0 else place] = 1
    features: Any = {of.source: dict(of.fitted.rows.blocks) for of in kept.experts.values()}
    stay = torch.ones(len(old), dtype=torch.bool)
    if given is not None:
        stay = ~torch.stack([of.copies(given[0]) for of in kept.experts.values()]).any(0).any(0)
    parts, groups, rows = [Outputs(old.class_mask, {}, features).take(stay)], old.groups[stay], int(stay.sum())
    targets = (targets_of(old.labels, len(into)) @ (into / into.sum(1, keepdim=True)))[stay]
    if given is not None:
        parts.append(replace(given[0], log_probs={}, class_mask=old.class_mask[:1].expand(len(given[1]), -1)))
        targets = torch.cat([targets, targets_of(given[1], classes)])
        groups = torch.cat([groups, old.groups.max() + 1 + given[2]])
    certain = targets.amax(1) > 1 - 1e-9
    for place, name in enumerate(to.after):
        count = len(set(groups[certain & (targets[:, place] > 0)].tolist()))
        if count < (least := FEWEST_OF_LABEL if name in to.new else 1):
            raise DataError(f"the label {name[:64]!r} would have {count} rows of different texts: give {least} or more")
    if not bool(certain[:rows].any()):
        raise ConfigError("no row keeps its label: fit all rows anew")
    outputs = replace(Outputs.joined(*parts), class_mask=torch.ones(targets.shape, dtype=torch.bool))
    folds = fold_numbers(len(targets), settings.calibration.folds, settings.seed, groups)
    labels, without = told_apart(outputs, targets, folds, settings.seed)
    labelled = Labelled(labels, outputs.class_mask, groups, folds, outputs.class_mask[:, 0], without=without)
    names: Any = tuple(kept.experts)
    heads, right = fit_heads(names, outputs, labelled, settings, say), labels
    if without is not None:
        right = torch.multinomial(labels, 1, generator=torch.Generator().manual_seed(settings.seed))[:, 0]
        drawn = judged(replace(labelled, labels=right), heads.experts, None, heads.pool, settings)
        heads = replace(heads, predictives=drawn.predictives, scores=drawn.scores)
    same, after = certain[:rows], [-1 if one in to.new else place for place, one in enumerate(to.after)]

    def summed(log_probs: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        probs = log_probs[same].exp() @ targets_of(torch.tensor(places) % (classes + 1), classes + 1)
        return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()

    answers: Any = (heads.choice.name, summed(heads.answering[heads.choice.name].held_out[:rows], after))
    mask = torch.ones(int(same.sum()), classes + 1, dtype=torch.bool)
    some = labelled.take(same.nonzero()[:, 0])
    some = replace(some, labels=targets[:rows][same].argmax(1), class_mask=mask, without=None)
    known = before[0], summed(before[1][stay], to.places)
    return heads, right, compare(known, answers, some, settings.calibration.folds)


def told_apart(
    outputs: Outputs, targets: torch.Tensor, folds: torch.Tensor, seed: int
) -> tuple[torch.Tensor, dict[int, torch.Tensor] | None]:
    """Return labels, and by fold what is known of them without its rows; None where each row has one label.

    Rows that may have several, 0 < ``targets`` (rows, classes) < 1, get probabilities by a head on rows that have one.
    """
    unsure, right = targets.amax(1) < 1 - 1e-9, targets.argmax(1)
    if not bool(unsure.any()):
        return right, None
    blocks = outputs.features.get("encoder") or next(iter(outputs.features.values()))

    def told(known: torch.Tensor) -> torch.Tensor:
        found = targets.clone()
        for support in torch.unique(targets[unsure] > 0, dim=0):
            mine = unsure & ((targets > 0) == support).all(1)
            some, place = known & ~unsure & support[right], support.cumsum(0) - 1
            taught = {name: block[some] for name, block in blocks.items()}
            head = fit(taught, place[right[some]], classes=int(support.sum()), seed=seed, honest=False).head
            answers = head.log_probs({name: block[mine] for name, block in blocks.items()}).exp()
            found[mine] = torch.zeros(len(answers), len(support)).double().masked_scatter(support, answers)
        return found

    return told(torch.ones_like(unsure)), {number: told(folds != number) for number in set(folds.tolist())}
