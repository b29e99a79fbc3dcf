"""What ``laplora.fit`` returns for a model as it is: heads on its states, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from laplora.answers.prediction import Array, Prediction, answers_of
from laplora.classifier import Classifier
from laplora.errors import ArtifactWriteError, ConfigError, DataError, ModelError
from laplora.experts.adapter import AsGiven, point
from laplora.experts.answering import at_mode
from laplora.experts.base import Labelled, Outputs, losses_of
from laplora.experts.of_head import HeadExpert
from laplora.features.expert_passes import ExpertPasses
from laplora.fitting.calibrated import ONE_AT_A_TIME, Inputs, probabilities
from laplora.fitting.evaluation import Measured, RowProbs, evaluate_predictives
from laplora.fitting.fitted_heads import FittedHeads, forgotten, learned
from laplora.fitting.progress import Progress, Silent
from laplora.fitting.rows import groups_of, read_rows, warn_of_conflicts
from laplora.fitting.settings import FitSettings
from laplora.head.folds import folds_of_new
from laplora.pool.pool import Pool
from laplora.predictive.batch_outputs import BatchOutputs
from laplora.predictive.kinds import PREDICTIVES
from laplora.prompts.examples import Example, label_tensor
from laplora.prompts.groups import question_of
from laplora.prompts.rows import EncodedRow
from laplora.selection.suggest import Suggestion, most_telling

#: Inputs whose features are in memory together: 30 kB each with a base of 135 million weights.
_TOGETHER = 1024


class HeadsPosterior:
    """Heads on a model as it is: answers, metrics, and labels that come or go. It is never written to a file.

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
        self.passes, self.heads, self.rows, self.settings, self.data = passes, heads, rows, settings, dict(data)
        self._progress, self._weights = progress, _weights_of(passes.classifier.model)
        progress.say(f"answers by {heads.recommended}: {heads.reason}")

    def __repr__(self) -> str:
        """Return what was fitted, in a line."""
        model, names = type(self.classifier.model).__name__, ", ".join(self.heads.experts)
        return f"HeadsPosterior({names} on a {model}, {len(self.rows)} labelled rows, answers by {self.recommended})"

    @property
    def classifier(self) -> Classifier:
        """The classifier, whose model answers nothing but as it is."""
        return self.passes.classifier

    @property
    def recommended(self) -> str:
        """What answers unless a call names another: a head, or their pool."""
        return self.heads.recommended

    @property
    def predictives(self) -> tuple[str, ...]:
        """What a call can name: ``map``, the model's own answer where it has one, the heads and their ``pooled``."""
        return tuple(self.heads.predictives)

    @property
    def experts(self) -> dict[str, AsGiven | HeadExpert | Pool]:
        """By name, each with its honest log probabilities of ``rows``; ``zero_shot`` is the model's own answer."""
        own = {} if self.heads.zero_shot is None else {"zero_shot": self.heads.zero_shot}
        return {**own, **self.heads.answering}

    @property
    def losses(self) -> dict[str, torch.Tensor]:
        """By expert (rows,) float64, the NLL of each labelled row by its honest answer, nats."""
        return {name: losses_of(expert.held_out, self.heads.labelled) for name, expert in self.experts.items()}

    def outputs(self, inputs: Inputs) -> Outputs:
        """Return what ``experts`` read of inputs; arguments and errors as of ``predict``."""
        given = [inputs] if isinstance(inputs, Mapping | str) else inputs
        return self._outputs(read_rows(given, self.classifier, None, "input"), self._progress, "inputs")

    def predict(
        self, inputs: Inputs, predictive: str | None = None, *, truncate: bool = True, batch_size: int = 8
    ) -> list[Prediction]:
        """Return an answer per input, in order, as ``CalibratedPosterior.predict`` does.

        ``map_probs`` are the model's own answer by label tokens, None where it has none; ``label_mass`` is 1. The
        spread is that of the head's weights under precisions that suit the mode: with more features than rows it is
        mostly the prior's, as wide as the answer allows, and nearly all of ``total`` is ``epistemic``. By ``total``
        doubts rank at least as well. ``familiarity`` is by distances to the labelled rows.

        Raises:
            DataError: an input without one of the fields, or with one that cannot be used.
            TooManyTokensError: too long, with ``truncate`` off.
            ConfigError: no such predictive; ``laplace`` and others of an adapter are none.
            ModelError: a model in training mode, or with other weights than were fitted.
            NonFiniteError: NaN or infinity in its states.
        """
        name = self._named(predictive)
        given = [inputs] if isinstance(inputs, Mapping | str) else inputs
        if isinstance(given, Sized) and not len(given):
            return []
        examples = read_rows(given, self.classifier, None, "input")
        rows = [self.classifier.encode(example.fields, truncate=truncate) for example in examples]
        answers = list[Prediction]()
        for some in _parts(len(rows)):
            answers += self._answers(examples[some], rows[some], name, batch_size)
        return answers

    def predict_proba(
        self, inputs: Inputs, predictive: str | None = None, *, truncate: bool = True, batch_size: int = 8
    ) -> Array:
        """Return (inputs, labels) float64 the probabilities, as ``CalibratedPosterior.predict_proba`` does."""
        answers = self.predict(inputs, predictive, truncate=truncate, batch_size=batch_size)
        return probabilities(answers, self.classifier.class_count)

    def evaluate(self, rows: Any, label_field: str = "label", groups: str | None = None) -> Measured:
        """Return the metrics of every head, and of the model's own answer, on labelled rows that none of them knows.

        Arguments and errors are those of ``laplora.fit``; intervals are over groups.
        """
        examples = read_rows(rows, self.classifier, label_field, "test row", groups)
        parts, familiarity = list[RowProbs](), list[torch.Tensor | None]()
        for some in _parts(len(examples)):
            outputs = self._outputs(examples[some], self._progress, "test rows")
            probs = {name: logs.exp() for name, logs in self.heads.log_probs(outputs).items()}
            own = outputs.log_probs["zero_shot"].exp() if self.heads.zero_shot else None
            probs = ({} if own is None else {"map": own}) | probs
            familiarity.append(self.heads.familiarity(self.recommended, outputs))
            labels = label_tensor(examples[some], self.classifier.class_count)
            parts.append(RowProbs(probs, own, labels, outputs.class_mask, 1, labels))
        together = RowProbs.joined(parts, groups_of(self.classifier, examples))
        known = [one for one in familiarity if one is not None]
        unfamiliar = self.heads.unfamiliar(torch.cat(known) if known else None)
        rules = self.heads.calibration.conformal
        evaluations, sets, by_label = evaluate_predictives(together, self.heads.predictives, rules, unfamiliar)
        share = None if unfamiliar is None else float(unfamiliar.double().mean())
        return Measured(evaluations, sets, self.recommended, (), by_label, share)

    def condition(self, rows: Any, label_field: str = "label", *, groups: str | None = None) -> HeadsPosterior:
        """Return the posterior that learned further labels, whose rows its thresholds rest on too; this one stays.

        Precisions and a pool's weights stay as they were fitted: with many more rows than before, fit anew.

        Raises:
            DataError: rows that cannot be used, or one that joins two groups of the rows before.
        """
        examples = read_rows(rows, self.classifier, label_field, groups=groups)
        everything = (*self.rows, *examples)
        warn_of_conflicts(self.classifier, everything)
        outputs = self._outputs(examples, self._progress, "labelled rows")
        old = self.heads.labelled
        numbers = _continued(old.groups, groups_of(self.classifier, everything))
        new = Labelled(
            label_tensor(examples, self.classifier.class_count),
            outputs.class_mask,
            numbers,
            folds_of_new(old.folds, len(examples), old.groups, numbers),
            torch.ones(len(examples), dtype=torch.bool),
        )
        before = self.heads.answering[self.recommended].log_probs(outputs)
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

    def suggest(
        self, rows: Any, count: int = 100, *, least_familiarity: float = 0.0, batch_size: int = 8
    ) -> Suggestion:
        """Return which of some unlabelled rows to label next, as ``CalibratedPosterior.suggest`` does.

        A row's gain is its ``epistemic``: the mutual information of its label and the weights of the head that answers
        (BALD, Houlsby et al., arXiv 1112.5745), but at most the entropy of the answer.
        """
        if count < 1:
            raise ConfigError(f"{count} rows are to be chosen: ask for at least 1")
        answers = self.predict(rows, batch_size=batch_size)
        examples = read_rows(rows, self.classifier, None)
        gains = [answer.epistemic or 0.0 for answer in answers]
        encoded = self.classifier.encode_examples(examples)
        found = most_telling(encoded, answers, gains, count, least_familiarity)
        if not found.rows:
            raise DataError(
                f"none of {len(examples)} rows is like enough to the labelled ones: lower the least familiarity"
            )
        return found

    def save(self, path: str | Path, **_: Any) -> NoReturn:
        """Raise ArtifactWriteError: an artifact has an adapter, or a trained head."""
        raise ArtifactWriteError(
            f"an artifact holds a LoRA adapter or a trained head. Heads on a {type(self.classifier.model).__name__} as "
            "it is live in memory alone: keep the labelled rows and fit again, which takes forward passes"
        )

    def _with(self, heads: FittedHeads, rows: tuple[Example, ...]) -> HeadsPosterior:
        data = self.data | {"rows": {"labelled": len(rows)}}
        found = HeadsPosterior(self.passes, heads, rows, self.settings, data, self._progress)
        found._weights = self._weights  # those that the features are of
        return found

    def _named(self, predictive: str | None) -> str:
        name = predictive or self.recommended
        if name in self.predictives:
            return name
        if name in PREDICTIVES and name != "map":
            raise ConfigError(
                f"{name!r} is of a model with a LoRA adapter or a trained head, over whose weights there is a "
                f"posterior: this model, as it is, has {list(self.predictives)}"
            )
        raise ConfigError(f"there is no predictive {name[:64]!r}: there are {list(self.predictives)}")

    def _outputs(self, examples: Sequence[Example], progress: Progress, title: str, batch_size: int = 8) -> Outputs:
        """Return what the heads read of examples, after a check that the model is as it was fitted."""
        model = self.classifier.model
        if model.training:
            raise ModelError("the model is in training mode, in which dropout would change answers: call model.eval()")
        if _weights_of(model) != self._weights:
            raise ModelError(
                "the model is not as it was fitted: it was trained, or an adapter was put into it. Load it again, or "
                "fit anew"
            )
        with ONE_AT_A_TIME:
            return self.passes.outputs(examples, progress, title, batch_size)

    def _answers(
        self, examples: Sequence[Example], rows: Sequence[EncodedRow], name: str, batch_size: int
    ) -> list[Prediction]:
        outputs, heads = self._outputs(examples, Silent(), "", batch_size), self.heads
        own = outputs.log_probs["zero_shot"] if heads.zero_shot else None
        by_name = heads.log_probs(outputs)
        answering = self.recommended if name == "map" else name
        answers = heads.answering[answering].answers(outputs)
        computed = {expert: point(log_probs) for expert, log_probs in by_name.items()} | {answering: at_mode(answers)}
        if own is not None:
            computed["map"], by_name["map"] = point(own), own
        logits = by_name[name]
        familiarity = heads.familiarity(answering, outputs)
        mass = torch.ones(len(rows), dtype=torch.float64)
        given = BatchOutputs(logits, mass, outputs.class_mask, {}, None, familiarity)
        at_map = None if own is None else own.exp()
        found = answers_of(heads, rows, given, computed, name, at_map, spread=name != "map")
        if name == "map":
            return found
        variances = answers.variance.numpy()
        return [replace(one, logit_variance=variances[i, : len(one.labels)]) for i, one in enumerate(found)]

    def _places(self, rows: Any, label_field: str) -> set[int]:
        """Return which labelled rows are meant, by ids or by the rows themselves."""
        given = [rows] if isinstance(rows, Mapping | str | int) else rows
        found, wanted = dict[Any, list[int]](), list[Any]()
        if isinstance(given, Sequence | set) and all(isinstance(one, str | int) for one in given):
            wanted, what = [str(one) for one in given], "ids"
            for place, example in enumerate(self.rows):
                found.setdefault(example.id, []).append(place)
            if several := [name for name in wanted if len(found.get(name, ())) > 1]:
                raise DataError(f"{len(several)} ids are of several rows each: give the rows themselves, with labels")
        else:
            template, labels = self.classifier.template, self.classifier.labels
            keyed = [
                [(question_of(template, labels, example), example.label) for example in some]
                for some in (read_rows(given, self.classifier, label_field), self.rows)
            ]
            wanted, what = keyed[0], "rows"
            for place, key in enumerate(keyed[1]):
                found.setdefault(key, []).append(place)
        if unknown := sum(one not in found for one in wanted):
            raise DataError(f"{unknown} of {len(wanted)} {what} are of none of the {len(self.rows)} labelled rows")
        return {place for one in wanted for place in found[one]}


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, start + _TOGETHER) for start in range(0, rows, _TOGETHER))


def _weights_of(model: Any) -> tuple[tuple[int, int], ...]:
    """Return what changes when weights are changed in place, or others are put into a model."""
    return tuple((id(parameter), parameter._version) for parameter in model.parameters())


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
