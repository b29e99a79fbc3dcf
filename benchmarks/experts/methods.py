"""The rows of the table: experts of the library, each alone, and the rivals. A fit sees the labelled rows alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from laplora.pool.pool import fit_pool
from laplora.predictive.cross_fitting import cross_fitted, rank_aligned
from laplora.prompts.examples import Example, label_tensor


@dataclass(frozen=True)
class Given:
    """The inputs of a method: outputs of the labelled rows with their labels, and those of the test rows."""

    rows: Rows
    outputs: Outputs
    labelled: Labelled
    test: Outputs
    seed: int
    kept: dict[str, tuple[Expert, float]] = field(default_factory=dict)

    def once(self, name: str, fit: Callable[[], Expert]) -> tuple[Expert, float]:
        """Return an expert, and the processor seconds of its fit where a method before fitted it, else 0."""
        if name in self.kept:
            return self.kept[name]
        started = time.process_time()
        fitted = fit()
        self.kept[name] = fitted, time.process_time() - started
        return fitted, 0.0


@dataclass(frozen=True)
class Answers:
    """A method's answers.

    Attributes:
        held_out: (labelled, classes) float64 log probabilities that the row's label had no part in; NaN in rows where
            the method has none.
        test: (test, classes) float64 log probabilities under the fit on all labels.
        entropies: (labelled,) nats, what the threshold is set on; None: the entropies of ``held_out``.
        seconds: processor seconds of fits that a method before made already.
    """

    held_out: torch.Tensor
    test: torch.Tensor
    entropies: torch.Tensor | None = None
    seconds: float = 0.0


def _always(_: Task) -> bool:
    return True


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        reads: the sources that it answers from, or what they are by task; none: the texts alone.
        applies: whether it makes sense for a task.
    """

    title: str
    reads: tuple[Source, ...] | Callable[[Task], tuple[Source, ...]]
    answers: Callable[[Given], Answers]
    applies: Callable[[Task], bool] = _always

    def sources(self, task: Task) -> tuple[Source, ...]:
        """Return the sources that it answers a task from."""
        return self.reads if isinstance(self.reads, tuple) else self.reads(task)

    def run(self, passes: Passes) -> tuple[Answers, float]:
        """Return the answers, and the seconds of the fit: training, the labelled rows' passes, and the fit itself."""
        rows, cell = passes.rows, passes.cell
        splits = [Outputs(torch.ones(len(some), len(cell.task.labels)).bool()) for some in (rows.labelled, rows.test)]
        seconds = 0.0
        for source in self.sources(cell.task):
            outputs, of_pass = passes.labelled(source)
            seconds += of_pass
            splits = [_beside(*pair) for pair in zip(splits, (outputs, passes.test(source)), strict=True)]
        folds = fold_numbers(len(rows.labelled), seed=cell.seed)
        groups = torch.arange(len(folds))  # prompts are different, and nothing else groups them
        labels = label_tensor(rows.labelled, len(cell.task.labels))
        labelled = Labelled(labels, splits[0].class_mask, groups, folds, rows.honest)
        started = time.process_time()
        answers = self.answers(Given(rows, splits[0], labelled, splits[1], cell.seed, passes.kept))
        return answers, seconds + time.process_time() - started + answers.seconds


def _beside(one: Outputs, other: Outputs) -> Outputs:
    """Return what two sources gave of the same rows."""
    return Outputs(
        other.class_mask, {**one.log_probs, **other.log_probs}, {**one.features, **other.features}, other.covariance
    )


def _of(fitted: Expert, given: Given, seconds: float = 0.0) -> Answers:
    return Answers(fitted.held_out, fitted.log_probs(given.test), seconds=seconds)


def _as_given(name: LogProbSource) -> Callable[[Given], Answers]:
    return lambda given: _of(as_given(name, given.outputs, given.labelled), given)


def _fit_head(given: Given, source: FeatureSource) -> Callable[[], Expert]:
    return lambda: fit_head(source, given.outputs, given.labelled, source, seed=given.seed)


def _head(source: FeatureSource) -> Callable[[Given], Answers]:
    def answers(given: Given) -> Answers:
        fitted, seconds = given.once(source, _fit_head(given, source))
        return _of(fitted, given, seconds)

    return answers


def _pool(with_adapter: bool) -> Callable[[Given], Answers]:
    """Return the pool of the heads that the sources make, and of what stands on the adapter."""

    def answers(given: Given) -> Answers:
        experts, spent = dict[str, Expert](), [0.0]

        def add(name: str, fit: Callable[[], Expert]) -> None:
            experts[name], seconds = given.once(name, fit)
            spent.append(seconds)

        if with_adapter:
            experts["adapter"] = as_given("adapter", given.outputs, given.labelled)
            add("conditioned", _fit_conditioned(given))
        for source in given.outputs.features:
            if source != "last_state":
                add(source, _fit_head(given, source))
        return _of(fit_pool(experts, given.labelled), given, sum(spent))

    return answers


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
    fitted, seconds = given.once("conditioned", _fit_conditioned(given))
    return _of(fitted, given, seconds)


def _fit_conditioned(given: Given) -> Callable[[], Expert]:
    """Return the fit of the adapter's answer as the rows correct it that did not train it."""
    name, outputs, labelled = "conditioned", given.outputs, given.labelled
    return lambda: fit_head(name, outputs, labelled, "last_state", offset="adapter", temper=True, seed=given.seed)


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


def _with_adapter(task: Task) -> tuple[Source, ...]:
    return ("adapter", "frozen", "encoder") if _same_labels(task) else ("adapter", "options")


#: By name, in the order of the table.
METHODS: dict[str, Method] = {
    "temperature": Method("adapter, temperature (reference)", ("adapter",), _temperature),
    "map": Method("adapter as it is", ("adapter",), _as_given("adapter")),
    "conditioned": Method("**conditioned**", ("adapter",), _conditioned),
    "frozen": Method("**frozen**", ("frozen",), _head("frozen"), _same_labels),
    "encoder": Method("**encoder**", ("encoder",), _head("encoder"), _same_labels),
    "options": Method("**options**", ("options",), _head("options")),
    "pool_unadapted": Method(
        "**pooled**, nothing trained", ("frozen", "encoder"), _pool(with_adapter=False), _same_labels
    ),
    "pool": Method("**pooled**, with the adapter", _with_adapter, _pool(with_adapter=True)),
    "zero_shot": Method("label tokens, zero-shot", ("frozen",), _as_given("zero_shot"), _has_words),
    "logistic_last": Method("logistic, last states", ("frozen",), _rival(ON_STATES, "frozen", "last"), _same_labels),
    "logistic_mean": Method("logistic, mean states", ("frozen",), _rival(ON_STATES, "frozen", "fields"), _same_labels),
    "logistic_encoder": Method(
        "logistic, MiniLM", ("encoder",), _rival(ON_EMBEDDINGS, "encoder", "embedding"), _same_labels
    ),
    "nearest": Method(
        "nearest neighbours, MiniLM", ("encoder",), _rival(NEAREST, "encoder", "embedding"), _same_labels
    ),
    "words": Method("logistic, TF-IDF", (), _words, _same_labels),
}
