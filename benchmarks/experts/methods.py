"""The rows of the table: experts of the library, each alone, and the rivals. A fit sees the labelled rows alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.tasks import Task
from benchmarks.experts.cells import Rows
from benchmarks.experts.passes import Passes, Source
from benchmarks.experts.rivals import NEAREST, ON_EMBEDDINGS, ON_STATES, ON_WORDS, Rival
from laplora.decisions.temperature import fit_temperature, temperature_probs
from laplora.experts.adapter import as_given
from laplora.experts.base import Expert, FeatureSource, Labelled, LogProbSource, Outputs
from laplora.experts.laplace import moments_of
from laplora.experts.last_state import LastState, fit_last_state
from laplora.experts.of_head import fit_head
from laplora.head import fold_numbers
from laplora.linearised import entropy
from laplora.predictive.cross_fitting import cross_fitted, rank_aligned
from laplora.prompts.examples import Example, label_tensor


@dataclass(frozen=True)
class Given:
    """What a method answers from: outputs of the labelled rows with their labels, and those of the test rows."""

    rows: Rows
    outputs: Outputs
    labelled: Labelled
    test: Outputs
    seed: int


@dataclass(frozen=True)
class Answers:
    """A method's answers.

    Attributes:
        held_out: (labelled, classes) float64 log probabilities that the row's label had no part in; NaN in rows where
            the method has none.
        test: (test, classes) float64 log probabilities under the fit on all labels.
        entropies: (labelled,) nats, what the threshold is set on; None: the entropies of ``held_out``.
    """

    held_out: torch.Tensor
    test: torch.Tensor
    entropies: torch.Tensor | None = None


def _always(_: Task) -> bool:
    return True


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        source: that it answers from; None: the texts alone.
        applies: whether it makes sense for a task.
    """

    title: str
    source: Source | None
    answers: Callable[[Given], Answers]
    applies: Callable[[Task], bool] = _always

    def run(self, passes: Passes) -> tuple[Answers, float]:
        """Return the answers, and the seconds of the fit: training, the labelled rows' passes, and the fit itself."""
        rows, cell = passes.rows, passes.cell
        if self.source is None:
            outputs, test = (
                Outputs(torch.ones(len(n), len(cell.task.labels)).bool()) for n in (rows.labelled, rows.test)
            )
            seconds = 0.0
        else:
            (outputs, seconds), test = passes.labelled(self.source), passes.test(self.source)
        folds = fold_numbers(len(rows.labelled), seed=cell.seed)
        groups = torch.arange(len(folds))  # prompts are different, and nothing else groups them
        labels = label_tensor(rows.labelled, len(cell.task.labels))
        labelled = Labelled(labels, outputs.class_mask, groups, folds, rows.honest)
        started = time.process_time()
        answers = self.answers(Given(rows, outputs, labelled, test, cell.seed))
        return answers, seconds + time.process_time() - started


def _of(fitted: Expert, given: Given) -> Answers:
    return Answers(fitted.held_out, fitted.log_probs(given.test))


def _as_given(name: LogProbSource) -> Callable[[Given], Answers]:
    return lambda given: _of(as_given(name, given.outputs, given.labelled), given)


def _head(source: FeatureSource) -> Callable[[Given], Answers]:
    return lambda given: _of(fit_head(source, given.outputs, given.labelled, source, seed=given.seed), given)


def _temperature(given: Given) -> Answers:
    """Temperature scaling on the rows that did not train the adapter: out of fold, then aligned as the product does."""
    honest = given.labelled.honest
    kept, labels = given.outputs.take(honest), given.labelled.labels[honest]
    logits, mask, whole = kept.log_probs["adapter"], kept.class_mask, torch.arange(len(labels))

    def tempered(fitted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        temperature = fit_temperature(logits[fitted], labels[fitted], mask[fitted])
        return temperature_probs(logits[rows], temperature, mask[rows])

    def entropies_of(fitted: torch.Tensor) -> torch.Tensor:
        return entropy(tempered(fitted, whole))[:, None]

    temperature = fit_temperature(logits, labels, mask)
    test = temperature_probs(given.test.log_probs["adapter"], temperature, given.test.class_mask)
    aligned = rank_aligned(entropies_of, entropies_of(whole), seed=given.seed)
    held_out = _spread(given, cross_fitted(tempered, len(labels), seed=given.seed).log())
    return Answers(held_out, test.log(), _spread(given, aligned)[:, 0])


def _conditioned(given: Given) -> Answers:
    """The adapter's answer as the rows correct it that did not train it, and each of these as the other folds do."""
    honest = given.labelled.honest
    kept, labels = given.outputs.take(honest), given.labelled.labels[honest]

    def fitted(rows: torch.Tensor) -> LastState:
        some = kept.take(rows)
        (states,) = some.features["last_state"].values()
        return fit_last_state("conditioned", *moments_of(some, "categorical"), states, labels[rows])

    held_out = cross_fitted(
        lambda fit, answered: fitted(fit).log_probs(kept.take(answered)), len(labels), seed=given.seed
    )
    return Answers(_spread(given, held_out), fitted(torch.arange(len(labels))).log_probs(given.test))


def _spread(given: Given, values: torch.Tensor) -> torch.Tensor:
    """Return values of the honest rows at their places among the labelled rows, (labelled, ...); NaN elsewhere."""
    every = values.new_full((len(given.labelled), *values.shape[1:]), torch.nan)
    every[given.labelled.honest] = values
    return every


def _rival(of: Rival, source: FeatureSource, kind: str) -> Callable[[Given], Answers]:
    """Return a rival on the blocks of a kind side by side: states of all layers."""

    def features(outputs: Outputs) -> Any:
        blocks = outputs.features[source]
        return torch.cat([blocks[name] for name in blocks if name.partition(".")[0] == kind], 1).double().numpy()

    return lambda given: _answered(of, given, features(given.outputs), features(given.test))


def _words(given: Given) -> Answers:
    labelled, test = (np.array(texts(rows), dtype=object) for rows in (given.rows.labelled, given.rows.test))
    return _answered(ON_WORDS, given, labelled, test)


def _answered(of: Rival, given: Given, labelled: Any, test: Any) -> Answers:
    known = given.labelled
    return Answers(*of.answers(labelled, known.labels, test, known.folds, known.class_mask.shape[1]))


def texts(rows: tuple[Example, ...]) -> list[str]:
    """Return the fields' own texts of each row, a line each."""
    return ["\n".join(map(str, row.fields.values())) for row in rows]


def _has_words(task: Task) -> bool:
    """Return whether label words stand for the labels; a trained head has none."""
    return not task.head


def _same_labels(task: Task) -> bool:
    """Return whether a label means the same in every row: a letter does not."""
    return not task.template.takes_choices


#: By name, in the order of the table.
METHODS: dict[str, Method] = {
    "temperature": Method("adapter, temperature (reference)", "adapter", _temperature),
    "map": Method("adapter as it is", "adapter", _as_given("adapter")),
    "conditioned": Method("**conditioned**", "adapter", _conditioned),
    "frozen": Method("**frozen**", "frozen", _head("frozen"), _same_labels),
    "encoder": Method("**encoder**", "encoder", _head("encoder"), _same_labels),
    "options": Method("**options**", "options", _head("options")),
    "zero_shot": Method("label tokens, zero-shot", "frozen", _as_given("zero_shot"), _has_words),
    "logistic_last": Method("logistic, last states", "frozen", _rival(ON_STATES, "frozen", "last"), _same_labels),
    "logistic_mean": Method("logistic, mean states", "frozen", _rival(ON_STATES, "frozen", "fields"), _same_labels),
    "logistic_encoder": Method(
        "logistic, MiniLM", "encoder", _rival(ON_EMBEDDINGS, "encoder", "embedding"), _same_labels
    ),
    "nearest": Method("nearest neighbours, MiniLM", "encoder", _rival(NEAREST, "encoder", "embedding"), _same_labels),
    "words": Method("logistic, TF-IDF", None, _words, _same_labels),
}
