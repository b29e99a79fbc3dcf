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


def _head(source: FeatureSource, **options: Any) -> Callable[[Given], Answers]:
    return lambda given: _of(fit_head(source, given.outputs, given.labelled, source, **options), given)


def _temperature(given: Given) -> Answers:
    """Temperature scaling on the rows that did not train the adapter: out of fold, then aligned as the product does."""
    honest, every = given.labelled.honest, given.outputs.log_probs["adapter"]
    kept, mask, labels = every[honest], given.outputs.class_mask[honest], given.labelled.labels[honest]
    whole = torch.arange(len(kept))

    def tempered(fitted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return temperature_probs(kept[rows], fit_temperature(kept[fitted], labels[fitted], mask[fitted]), mask[rows])

    def entropies_of(fitted: torch.Tensor) -> torch.Tensor:
        return entropy(tempered(fitted, whole))[:, None]

    held_out, entropies = torch.full_like(every, torch.nan), torch.zeros(len(every)).double()
    held_out[honest] = cross_fitted(tempered, len(kept), seed=given.seed).log()
    entropies[honest] = rank_aligned(entropies_of, entropies_of(whole), seed=given.seed)[:, 0]
    test = temperature_probs(
        given.test.log_probs["adapter"], fit_temperature(kept, labels, mask), given.test.class_mask
    )
    return Answers(held_out, test.log(), entropies)


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
    "conditioned": Method("**conditioned**", "adapter", _head("last_state", offset="adapter", temper=True)),
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
