"""The rows of the tables: what the product serves, its experts each alone, and the rivals.

A fit sees the labels of one draw. A rival that some library has is the library's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.calibrators import CALIBRATORS, Fit, tempered
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.encoders import fit_fine_tuned, fit_setfit
from benchmarks.evidence.given import Given, beside, labelled_of, texts, to_a_person
from benchmarks.evidence.passes import Passes, Source
from benchmarks.evidence.plan import DRAWS, LABELS, LARGEST, SEVERAL, SMALL
from benchmarks.evidence.product import fine_tuned_product, last_layer
from benchmarks.evidence.rivals import NEAREST, NEAREST_STATE, ON_EMBEDDINGS, ON_STATES, ON_WORDS, Rival
from benchmarks.evidence.scores import Answers
from benchmarks.evidence.tasks import Task
from laplora.execution.progress import Silent
from laplora.experts.adapter import as_given
from laplora.experts.base import Expert, FeatureSource, LogProbSource, Outputs
from laplora.experts.of_head import fit_head
from laplora.fitting.fitted_heads import FittedHeads, fit_heads
from laplora.head import fold_numbers
from laplora.linearised import entropy
from laplora.pool.choice import costs_of
from laplora.pool.pool import fit_pool
from laplora.predictive.cross_fitting import cross_fitted, rank_aligned
from laplora.settings import FitSettings


def _always(_: Cell) -> bool:
    return True


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        reads: the sources that it answers from, or what they are by task; none: the texts alone.
        passes: through the base for one answer; a sentence encoder's is .05. Answers that know better say so.
        applies: whether it makes sense in a cell.
        draws: of so many; 1: of what takes a long fit.
        trains: whether it trains a model of its own, beside the adapter.
    """

    title: str
    reads: tuple[Source, ...] | Callable[[Task], tuple[Source, ...]]
    passes: float
    answers: Callable[[Given], Answers]
    applies: Callable[[Cell], bool] = _always
    draws: int = DRAWS
    trains: bool = False

    def planned(self, cell: Cell) -> bool:
        """Return whether it is measured in a cell.

        A long fit is not where test rows are of another part, and nothing is trained on the largest base.
        """
        if cell.training.base == LARGEST and (self.trains or "adapter" in self.sources(cell.task)):
            return False
        return self.applies(cell) and (self.draws > 1 or cell.task.test is None)

    def sources(self, task: Task) -> tuple[Source, ...]:
        """Return the sources that it answers a task from."""
        return self.reads if isinstance(self.reads, tuple) else self.reads(task)

    def run(self, passes: Passes, draw: int) -> Answers:
        """Return the answers; their seconds are of training, the labelled rows' passes, and the fit itself."""
        cell, places = passes.cell, passes.places(draw)
        every, classes, seconds = passes.labelled_rows, len(cell.task.labels), 0.0
        rows, test = [every[place] for place in places.tolist()], passes.rows.test
        splits = [Outputs(torch.ones(len(some), classes).bool()) for some in (rows, test)]
        for source in self.sources(cell.task):
            outputs, of_pass = passes.labelled(source)
            seconds += of_pass
            read = outputs.take(places), passes.test(source)
            splits = [beside(*pair) for pair in zip(splits, read, strict=True)]
        honest = torch.arange(len(rows)) >= len(passes.rows.train)
        kept = passes.of_draw(draw)
        labelled = labelled_of(passes.labels()[places], splits[0].class_mask, honest, cell.training.seed)
        started, before = time.process_time(), sum(passes.live)
        answers = self.answers(Given(rows, test, splits[0], labelled, splits[1], cell.training.seed, passes, kept))
        seconds += time.process_time() - started - (sum(passes.live) - before) + answers.seconds
        return replace(answers, seconds=seconds, passes=self.passes if answers.passes is None else answers.passes)


def _of(fitted: Expert, given: Given, seconds: float = 0.0) -> Answers:
    return Answers(fitted.held_out, fitted.log_probs(given.test), seconds=seconds)


def _as_given(name: LogProbSource) -> Callable[[Given], Answers]:
    return lambda given: _of(as_given(name, given.outputs, given.labelled), given)


# The product's own answers.


def _heads(given: Given) -> tuple[FittedHeads, float]:
    """Return what ``laplora.fit`` makes of a model as it is: every labelled row trains, and is judged out of fold."""
    known = given.labelled
    every = labelled_of(known.labels, known.class_mask, torch.ones_like(known.honest), given.seed)
    names = tuple(given.outputs.features)
    settings = FitSettings(seed=given.seed)
    fit: Callable[[], Any] = lambda: fit_heads(names, given.outputs, every, settings, Silent())  # type: ignore[arg-type]  # noqa: E731
    return given.once("heads", fit)


def _served(given: Given) -> Answers:
    heads, seconds = _heads(given)
    passes = costs_of([heads.choice.name], heads.served.weights, adapter=False)[heads.choice.name]
    return replace(served_answers(heads, given.test), seconds=seconds, passes=passes)


def served_answers(heads: FittedHeads, test: Outputs) -> Answers:
    """Return what an artifact answers: by its own choice, with rows that are unlike the labelled ones for a person."""
    name = heads.choice.name
    chosen = heads.zero_shot if name == "map" else heads.answering[name]
    assert chosen is not None
    familiarity, answers = heads.served.familiarity(name, test), chosen.log_probs(test)
    unlike = None if familiarity is None else familiarity <= heads.false_alarms
    return Answers(chosen.held_out, answers, None, to_a_person(answers, unlike))


def _of_heads(name: str) -> Callable[[Given], Answers]:
    def answers(given: Given) -> Answers:
        heads, seconds = _heads(given)
        return _of(heads.answering[name], given, seconds)

    return answers


def _fit_conditioned(given: Given) -> Callable[[], Any]:
    """Return the fit of the adapter's answer as the rows correct it that did not train it."""
    name, outputs, labelled = "conditioned", given.outputs, given.labelled
    return lambda: fit_head(name, outputs, labelled, "last_state", offset="adapter", temper=True, seed=given.seed)


def _conditioned(given: Given) -> Answers:
    fitted, seconds = given.once("conditioned", _fit_conditioned(given))
    return _of(fitted, given, seconds)


def _pool(given: Given) -> Answers:
    """Return the pool of the adapter's answer, that answer conditioned, and the heads that look at no adapter."""
    experts: dict[str, Expert] = {"adapter": as_given("adapter", given.outputs, given.labelled)}
    experts["conditioned"], spent = given.once("conditioned", _fit_conditioned(given))
    for source in given.outputs.features:
        if source != "last_state":
            experts[source], seconds = given.once(f"head {source}", _fit_head(given, source))
            spent += seconds
    pool = fit_pool(experts, given.labelled)
    return replace(_of(pool, given, spent), passes=costs_of(["pooled"], pool.weights, adapter=True)["pooled"])


def _fit_head(given: Given, source: FeatureSource) -> Callable[[], Any]:
    return lambda: fit_head(source, given.outputs, given.labelled, source, seed=given.seed)


# Calibrators of the adapter's answer.


def calibrated(fit: Fit) -> Callable[[Given], Answers]:
    """Return the method that fits a calibrator on the rows that did not train the adapter.

    Out of fold for the threshold, whose entropies are then put on the scale of the fit on all of them.
    """

    def answers(given: Given) -> Answers:
        honest = given.labelled.honest
        logs, labels = given.outputs.log_probs["adapter"][honest], given.labelled.labels[honest]
        whole = torch.arange(len(labels))

        def of_fold(fitted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return fit(logs[fitted], labels[fitted])(logs[rows])

        def entropies_of(fitted: torch.Tensor) -> torch.Tensor:
            return entropy(of_fold(fitted, whole).exp())[:, None]

        aligned = rank_aligned(entropies_of, entropies_of(whole), seed=given.seed)
        held_out = cross_fitted(of_fold, len(labels), seed=given.seed)
        test = fit(logs, labels)(given.test.log_probs["adapter"])
        return Answers(given.spread(held_out), test, given.spread(aligned)[:, 0])

    return answers


def _at_temperature(given: Given, held_out: torch.Tensor, test: torch.Tensor) -> Answers:
    """Return answers whose temperature is fitted on honest rows; NaN in rows of ``held_out`` that are not."""
    known = replace(given.labelled, honest=~held_out.isnan().any(1))
    outputs = [replace(one, log_probs={"adapter": of}) for one, of in ((given.outputs, held_out), (given.test, test))]
    return calibrated(tempered)(replace(given, outputs=outputs[0], labelled=known, test=outputs[1]))


# More than one training.


def _all_labels(given: Given) -> Answers:
    """Return an adapter of nine tenths of all labels, with a temperature of the last tenth."""
    labelled, test, seconds = given.of_cell.of_adapter("whole")
    trained = given.of_cell.whole_rows()
    held_out = labelled.log_probs["adapter"].masked_fill(trained[:, None], torch.nan)
    return replace(_at_temperature(given, held_out, test.log_probs["adapter"]), seconds=seconds)


def _cross_fitted(given: Given) -> Answers:
    """Return an adapter of all labels, with a temperature of answers by the adapters of folds."""
    folds, spent = given.of_cell.folds(), 0.0
    held_out = torch.full(given.labelled.class_mask.shape, torch.nan, dtype=torch.float64)
    for fold in sorted({*folds.tolist()}):
        labelled, _, seconds = given.of_cell.of_adapter(f"fold.{fold}")
        held_out[folds == fold] = labelled.log_probs["adapter"][folds == fold]
        spent += seconds
    _, test, seconds = given.of_cell.of_adapter("all")
    return replace(_at_temperature(given, held_out, test.log_probs["adapter"]), seconds=spent + seconds)


def _ensemble(given: Given) -> Answers:
    """Return the mean probabilities of five adapters from different starts, with a temperature."""
    others = [given.of_cell.of_adapter(f"member.{number}") for number in range(1, 5)]
    parts = [(given.outputs, given.test), *((labelled, test) for labelled, test, _ in others)]
    labelled, test = (
        torch.stack([part[end].log_probs["adapter"].exp() for part in parts]).mean(0).log() for end in (0, 1)
    )
    answers = _at_temperature(given, labelled.masked_fill(~given.labelled.honest[:, None], torch.nan), test)
    return replace(answers, seconds=sum(seconds for *_, seconds in others))


def _encoder_trained(fit: Any) -> Callable[[Given], Answers]:
    """Return the method that trains a sentence encoder on nine tenths of all labels, with a temperature of the last."""

    def answers(given: Given) -> Answers:
        trained, classes = given.of_cell.whole_rows(), given.labelled.class_mask.shape[1]
        some = [row for row, one in zip(given.rows, trained.tolist(), strict=True) if one]
        model = fit(texts(some), given.labelled.labels[trained], classes, given.seed)
        held_out = model(texts(given.rows)).masked_fill(trained[:, None], torch.nan)
        return _at_temperature(given, held_out, model(texts(given.test_rows)))

    return answers


# Estimators of scikit-learn.


def _rival(of: Rival, source: FeatureSource, kind: str) -> Callable[[Given], Answers]:
    """Return a rival on the blocks of a kind side by side: states of all layers."""

    def features(outputs: Outputs) -> Any:
        blocks = outputs.features[source]
        return torch.cat([blocks[name] for name in blocks if name.partition(".")[0] == kind], 1).double().numpy()

    return lambda given: _answered(of, given, features(given.outputs), features(given.test))


def _on_adapted(of: Rival) -> Callable[[Given], Answers]:
    """Return a rival on the adapter's last state, of the rows that did not train it."""

    def answers(given: Given) -> Answers:
        honest = given.labelled.honest
        some, test = (one.features["last_state"]["states"].double().numpy() for one in (given.outputs, given.test))
        known = given.labelled.take(honest)
        folds = fold_numbers(len(known), seed=given.seed)
        held_out, of_test = of.answers(some[honest.numpy()], known.labels, test, folds, known.class_mask.shape[1])
        return Answers(given.spread(held_out), of_test)

    return answers


def _words(given: Given) -> Answers:
    labelled, test = (np.array(texts(rows), dtype=object) for rows in (given.rows, given.test_rows))
    return _answered(ON_WORDS, given, labelled, test)


def _answered(of: Rival, given: Given, labelled: Any, test: Any) -> Answers:
    known = given.labelled
    folds = fold_numbers(len(known), seed=given.seed)
    return Answers(*of.answers(labelled, known.labels, test, folds, known.class_mask.shape[1]))


# Cells that a method makes sense in.


def _has_words(cell: Cell) -> bool:
    """Return whether label words stand for the labels; a trained head has none."""
    return not cell.task.head


def _same_labels(cell: Cell) -> bool:
    """Return whether a label means the same in every row: a letter does not."""
    return not cell.task.template.takes_choices


def _small_and_same(cell: Cell) -> bool:
    return _same_labels(cell) and cell.training.base == SMALL


def _several(cell: Cell) -> bool:
    of = cell.training
    return of.task in SEVERAL and (of.base, of.budget) == (SMALL, LABELS)


def _unadapted(task: Task) -> tuple[Source, ...]:
    return ("options",) if task.template.takes_choices else ("frozen", "encoder")


def _with_adapter(task: Task) -> tuple[Source, ...]:
    return ("adapter", *_unadapted(task))


#: By name, in the order of the tables. The library's own are in bold.
METHODS: dict[str, Method] = {
    "temperature": Method("adapter, temperature (reference)", ("adapter",), 1, calibrated(tempered)),
    "served": Method("**served** (default, nothing trained)", _unadapted, 1.05, _served),
    "served_tuned": Method("**served**, fine-tuned", _with_adapter, 5.05, fine_tuned_product("served"), draws=1),
    "frozen": Method("**frozen**", _unadapted, 1, _of_heads("frozen"), _same_labels),
    "encoder": Method("**encoder**", _unadapted, 0.05, _of_heads("encoder"), _same_labels),
    "options": Method("**options**", ("options",), 2, _of_heads("options"), lambda cell: not _same_labels(cell)),
    "pool_unadapted": Method("**pooled**, nothing trained", _unadapted, 1.05, _of_heads("pooled"), _same_labels),
    "conditioned": Method("**conditioned**", ("adapter",), 1, _conditioned),
    "pool": Method("**pooled**, with the adapter", _with_adapter, 2.05, _pool),
    "laplace": Method("Laplace, LoRA weights", _with_adapter, 3, fine_tuned_product("laplace"), draws=1),
    "last_layer": Method("Laplace, last layer", _with_adapter, 3, last_layer, draws=1),
    "map": Method("adapter as it is", ("adapter",), 1, _as_given("adapter")),
    **{
        name: Method(f"adapter, {title}", ("adapter",), 1, calibrated(CALIBRATORS[name]))
        for name, title in (
            ("vector", "vector scaling with a ridge"),
            ("structured", "structured matrix scaling"),
            ("beta", "beta calibration"),
            ("isotonic", "isotonic regression"),
        )
    },
    "all_labels": Method("adapter of 90 % of labels, temperature", (), 1, _all_labels, draws=1, trains=True),
    "cross_fitted": Method("adapter of all labels, cross-fitted", (), 1, _cross_fitted, _several, 1, trains=True),
    "ensemble": Method("five adapters, temperature", ("adapter",), 5, _ensemble, _several, 1, trains=True),
    "zero_shot": Method("label tokens, zero-shot", ("frozen",), 1, _as_given("zero_shot"), _has_words),
    "logistic_last": Method("logistic, last states", ("frozen",), 1, _rival(ON_STATES, "frozen", "last"), _same_labels),
    "logistic_mean": Method(
        "logistic, mean states", ("frozen",), 1, _rival(ON_STATES, "frozen", "fields"), _same_labels
    ),
    "nearest_last": Method(
        "neighbours, last states", ("frozen",), 1, _rival(NEAREST_STATE, "frozen", "last"), _same_labels
    ),
    "nearest_mean": Method(
        "neighbours, mean states", ("frozen",), 1, _rival(NEAREST_STATE, "frozen", "fields"), _same_labels
    ),
    "logistic_adapted": Method("logistic, adapted states", ("adapter",), 1, _on_adapted(ON_STATES), _same_labels),
    "nearest_adapted": Method("neighbours, adapted states", ("adapter",), 1, _on_adapted(NEAREST_STATE), _same_labels),
    "logistic_encoder": Method(
        "logistic, MiniLM", ("encoder",), 0.05, _rival(ON_EMBEDDINGS, "encoder", "embedding"), _small_and_same
    ),
    "nearest_encoder": Method(
        "neighbours, MiniLM", ("encoder",), 0.05, _rival(NEAREST, "encoder", "embedding"), _small_and_same
    ),
    "words": Method("logistic, TF-IDF", (), 0, _words, _small_and_same),
    "setfit": Method("SetFit, MiniLM", (), 0.05, _encoder_trained(fit_setfit), _small_and_same, 1, trains=True),
    "encoder_tuned": Method(
        "MiniLM fine-tuned", (), 0.05, _encoder_trained(fit_fine_tuned), _small_and_same, 1, trains=True
    ),
}
