"""The result of ``laplora.fit`` for a model as it is: heads on its states, calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from laplora.answers.golden_inputs import COUNT
from laplora.answers.review_scores import score_tensors
from laplora.artifact.encoders import encoder_record, unsaved_encoder
from laplora.artifact.manifest import SCORES
from laplora.errors import ConfigError, DataError, warn
from laplora.execution.progress import Progress
from laplora.experts.adapter import AsGiven
from laplora.experts.base import Labelled, Outputs, losses_of
from laplora.experts.of_head import HeadExpert
from laplora.features.expert_passes import ExpertPasses
from laplora.features.outputs import LogProbSource
from laplora.files.atomic import write_json, write_tensors
from laplora.fitting.calibrate import with_rules
from laplora.fitting.calibrated import ONE_AT_A_TIME, CalibratedPosterior, Inputs
from laplora.fitting.fitted_heads import FittedHeads, fit_heads, forgotten, learned
from laplora.fitting.rows import check_labels, groups_of, read_rows, shared_folds, warn_of_conflicts
from laplora.fitting.saving import FIT, Parts, write_heads
from laplora.head.folds import folds_of_new
from laplora.pool.pool import Pool
from laplora.predictive.batch_outputs import AdaptedModel
from laplora.predictive.kinds import PREDICTIVES
from laplora.prompts.examples import Example, label_tensor
from laplora.prompts.groups import question_of
from laplora.selection.label_audit import LabelAudit, audit_labels, text_of
from laplora.settings import FitSettings


class HeadsPosterior(CalibratedPosterior):
    """Heads on a model as it is: answers, metrics, labels that come or go, and the artifact that serves the same.

    ``map_probs`` of an answer are the model's own by label tokens, None where it has none; ``label_mass`` is None. The
    spread is that of the head's weights. ``familiarity`` is by distances to the labelled rows.

    Attributes:
        passes: what runs inputs for the heads; its ``classifier`` keeps the model in use.
        heads: the fitted heads, and what their held-out answers decided.
        rows: the labelled rows, in order.
        data: where they came from, and the seconds of the passes over them.
    """

    def __init__(
        self,
        passes: ExpertPasses,
        heads: FittedHeads,
        rows: tuple[Example, ...],
        settings: FitSettings,
        data: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        predictives = with_rules(settings.calibration, heads.predictives, heads.scores, passes.classifier.labels)
        heads = replace(heads, predictives=predictives)
        self.passes, self.heads, self.rows, self.settings = passes, heads, rows, settings
        self.classifier, self.data, self._progress = passes.classifier, dict(data), progress
        self._first_rows = tuple(dict(example.fields) for example in rows[:COUNT])
        self._measured = None
        adapted = AdaptedModel(self.classifier.model, {}, self.classifier.readout)
        scores = {str(name): one for name, one in heads.scores.items()}
        self._serve(self._predictor(adapted, scores, heads.served, passes.encoder))
        if nothing := self.predictor.nothing_accepted(self.recommended, None):
            warn(nothing.message)
        progress.say(f"answers by {self.recommended}: {heads.choice.reason}")

    def __repr__(self) -> str:
        model, names = type(self.classifier.model).__name__, ", ".join(self.heads.experts)
        return f"HeadsPosterior({names} on a {model}, {len(self.rows)} labelled rows, answers by {self.recommended})"

    @property
    def experts(self) -> dict[str, AsGiven | HeadExpert | Pool]:  # type: ignore[override]
        """By name, each with its honest log probabilities of ``rows``; ``zero_shot`` is the model's own answer."""
        zero_shot = {} if self.heads.zero_shot is None else {"zero_shot": self.heads.zero_shot}
        return {**zero_shot, **self.heads.answering}

    @property
    def held_out(self) -> torch.Tensor:
        """(rows, classes) float64 honest log probabilities of ``rows`` by the recommended answer, nats."""
        return self.experts["zero_shot" if self.recommended == "map" else self.recommended].held_out

    @property
    def losses(self) -> dict[str, torch.Tensor]:
        """By expert (rows,) float64, the NLL of each labelled row by its honest answer, nats."""
        return {name: losses_of(expert.held_out, self.heads.labelled) for name, expert in self.experts.items()}

    def outputs(self, inputs: Inputs) -> Outputs:
        """Return what ``experts`` read of inputs; arguments and errors as of ``predict``."""
        given = [inputs] if isinstance(inputs, Mapping | str) else inputs
        return self._outputs(read_rows(given, self.classifier, None, "input"), "inputs")

    def condition(  # type: ignore[override]
        self, rows: Any, label_field: str = "label", *, groups: str | None = None
    ) -> HeadsPosterior:
        """Return the posterior that learned further labels, whose rows its thresholds rest on too; this one stays.

        Precisions and a pool's weights stay as they were fitted: with many more rows than before, fit anew.

        Raises:
            DataError: rows that cannot be used, or one that joins two groups of the rows before.
        """
        examples = read_rows(rows, self.classifier, label_field, groups=groups)
        everything = (*self.rows, *examples)
        warn_of_conflicts(self.classifier, everything)
        outputs = self._outputs(examples, "labelled rows")
        old = self.heads.labelled
        numbers = _continued(old.groups, groups_of(self.classifier, everything))
        new = Labelled(
            label_tensor(examples, self.classifier.class_count),
            outputs.class_mask,
            numbers,
            folds_of_new(old.folds, len(examples), old.groups, numbers),
            torch.ones(len(examples), dtype=torch.bool),
        )
        before = self.heads.answering[self.heads.choice.name].log_probs(outputs)
        self._progress.say(f"before they were learned, {len(new)} rows had NLL {losses_of(before, new).mean():.3f}")
        return self._with(learned(self.heads, outputs, new, self.settings, self._progress), everything)

    def forget(self, rows: Any, label_field: str = "label") -> HeadsPosterior:
        """Return the posterior without some of its labelled rows, precisions and weights as fitted; this one stays.

        Args:
            rows: ids, a row's number where it had none; or the rows themselves, of which every copy goes.

        Raises:
            DataError: rows that it does not know, or an id that several have; too few rows left.
        """
        places = self._places(rows, label_field)
        left = tuple(example for place, example in enumerate(self.rows) if place not in places)
        index = torch.tensor(sorted(places), dtype=torch.int64)
        return self._with(forgotten(self.heads, index, self.settings, self._progress), left)

    def audit(self) -> LabelAudit:
        """Return which labels of ``rows`` to look at, by the answers that know none of a row's group.

        Raises:
            DataError: soft labels, or rows of which several may be right.
        """
        texts = [text_of(example.fields) for example in self.rows]
        return audit_labels(self.held_out.exp(), self.heads.labelled.labels, texts)

    def corrected(self, corrections: Mapping[str, str | None]) -> HeadsPosterior:
        """Return heads fitted anew on corrected labels, without a pass over the rows; this one stays.

        Args:
            corrections: by a row's id its label's name; None: the row is left out.

        Raises:
            DataError: an id that is no row's or several', a name that is no label's, or a label that no row has left.
        """
        wanted = dict[int, str | None]()
        for name, label in corrections.items():
            wanted |= dict.fromkeys(self._places([name], "label"), label)
        return self.corrected_at(wanted)

    def corrected_at(self, wanted: Mapping[int, str | None]) -> HeadsPosterior:
        """Return what ``corrected`` does, of rows by their places from 0."""
        labels = list(self.classifier.labels)
        for label in wanted.values():
            if label is not None and label not in labels:
                raise DataError(f"no row can have the label {label!r}: it is none of {labels[:8]}")
        kept = torch.tensor([wanted.get(place, "") is not None for place in range(len(self.rows))])
        rows = tuple(
            replace(example, label=labels.index(label), target=None) if (label := wanted.get(place)) else example
            for place, example in enumerate(self.rows)
            if kept[place]
        )
        if not rows:
            raise DataError("the corrections leave no row")
        check_labels(rows, labels)
        known, zero_shot, settings = self.heads.labelled, self.heads.zero_shot, self.settings
        log_probs: dict[LogProbSource, torch.Tensor] = {}
        if zero_shot is not None:
            log_probs["zero_shot"] = zero_shot.held_out
        features = {of.source: dict(of.fitted.rows.blocks) for of in self.heads.experts.values()}
        outputs = Outputs(known.class_mask, log_probs, features).take(kept)
        labelled = shared_folds(self.classifier, (), rows, settings.calibration.folds, settings.seed)
        return self._with(fit_heads(self.passes.names, outputs, labelled, settings, self._progress), rows)

    def _with(self, heads: FittedHeads, rows: tuple[Example, ...]) -> HeadsPosterior:
        data = self.data | {"rows": {"labelled": len(rows)}}
        posterior = HeadsPosterior(self.passes, heads, rows, self.settings, data, self._progress)
        posterior._weights = self._weights  # those that the features are of
        return posterior

    def _named(self, predictive: str | None) -> str | None:
        if predictive in PREDICTIVES and predictive not in (*self.predictives, "map"):
            raise ConfigError(
                f"{predictive!r} is of a model with a LoRA adapter or a trained head, over whose weights there is a "
                f"posterior: this model, as it is, has {list(self.predictives)}"
            )
        return predictive

    def _outputs(self, examples: Sequence[Example], title: str) -> Outputs:
        """Return what the heads read of examples, after a check that the model is as it was fitted."""
        self._check_model()
        with ONE_AT_A_TIME:
            return self.passes.outputs(examples, self._progress, title)

    @property
    def _settings(self) -> FitSettings:
        return self.settings

    @property
    def _head_alone(self) -> bool:
        return False

    def _fitted_fields(self, saved: bool) -> dict[str, Any]:
        encoder = self.passes.encoder
        record = None if encoder is None else encoder_record(encoder) if saved else unsaved_encoder(encoder)
        return self.heads.manifest_fields(record)

    def _write_parts(self, folder: Path, base_model: str) -> Parts:
        return self.write_fitted(folder / "fitted")

    def write_fitted(self, folder: Path) -> Parts:
        """Write the heads, and the rows that they learn on, into a folder for an artifact."""
        heads, pool = self.heads, self.heads.pool
        write_heads(folder, heads.served, heads.kept_rows(), keep=self.settings.experts.keep_rows)
        write_tensors(folder / SCORES, score_tensors(heads.scores))
        write_json(
            folder / FIT,
            {
                "nll": dict(heads.choice.nll),
                "nll_of_the_choice": heads.choice.cross_fitted,
                "precisions": {name: dict(one.fitted.precisions) for name, one in heads.experts.items()},
                "weights_by_fold": {} if pool is None else {fold: dict(each) for fold, each in pool.by_fold.items()},
            },
        )
        return Parts(folder)

    def _places(self, rows: Any, label_field: str) -> set[int]:
        """Return which labelled rows are meant, by ids or by the rows themselves."""
        given = [rows] if isinstance(rows, Mapping | str | int) else rows
        places, wanted = dict[Any, list[int]](), list[Any]()
        if isinstance(given, Sequence | set) and all(isinstance(one, str | int) for one in given):
            wanted, what = [str(one) for one in given], "ids"
            for place, example in enumerate(self.rows):
                places.setdefault(example.id, []).append(place)
            if several := [name for name in wanted if len(places.get(name, ())) > 1]:
                raise DataError(f"{len(several)} ids are of several rows each: give the rows themselves, with labels")
        else:
            template, labels = self.classifier.template, self.classifier.labels
            keyed = [
                [(question_of(template, labels, example), example.label, example.target) for example in some]
                for some in (read_rows(given, self.classifier, label_field), self.rows)
            ]
            wanted, what = keyed[0], "rows"
            for place, key in enumerate(keyed[1]):
                places.setdefault(key, []).append(place)
        if unknown := sum(one not in places for one in wanted):
            raise DataError(f"{unknown} of {len(wanted)} {what} are of none of the {len(self.rows)} labelled rows")
        return {place for one in wanted for place in places[one]}


def _continued(old: torch.Tensor, everyone: torch.Tensor) -> torch.Tensor:
    """Return (new,) int64 the groups of new rows, numbered on from (old,) those of the rows before.

    Args:
        everyone: (old + new,) the groups of all rows, in numbers of their own.

    Raises:
        DataError: a new row joins groups that were apart, so that folds may part them.
    """
    numbers = dict[int, int]()
    for of_all, before in zip(everyone.tolist(), old.tolist(), strict=False):
        if numbers.setdefault(of_all, before) != before:
            raise DataError(
                "a new row is of two groups of the labelled rows, which folds may have parted: fit all rows anew"
            )
    fresh = int(old.max()) + 1
    return torch.tensor([numbers.get(group, fresh + group) for group in everyone[len(old) :].tolist()])
