"""The parts of a report: plain records, independent of their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from laplora.decisions.costs import cost_figures
from laplora.decisions.wanted import Costs
from laplora.errors import DataError
from laplora.linearised import most_probable
from laplora.metrics.checks import check_columns, checked_probs


@dataclass(frozen=True)
class Promise:
    """The guarantees of an artifact for rows like its calibration rows.

    Attributes:
        target_risk: error rate of the answers that no person looks at, at most; bounded: whether the review rule bounds
            it, where the default only aims at it.
        coverage: of the label sets; calibration_rows: that they were calibrated on.
        false_alarms: share of rows that are flagged as unfamiliar, at most; None where nothing flags them.
        nothing_accepted: that the review rule accepts nothing at this risk, in words; None where it does.
        risks: target risks by answered label, of which ``target_risk`` is the highest; None: it is of all.
        refitted: whether thresholds are of the report's own rows, by folds; else one stands fixed, and rows measure it.
    """

    target_risk: float
    coverage: float
    calibration_rows: int
    false_alarms: float | None = None
    bounded: bool = False
    nothing_accepted: str | None = None
    refitted: bool = False
    risks: Mapping[str, float] | None = None

    @property
    def target(self) -> str:
        """The target in words."""
        percent = f"{100 * self.target_risk:.1f}\u00a0%"
        return (
            f"target error rates by label of at most {percent}"
            if self.risks is not None
            else f"a target error rate of {percent}"
        )

    @property
    def verb(self) -> str:
        """The verb for the target risk under the review rule."""
        return "promised" if self.bounded else "aimed at"


@dataclass(frozen=True)
class Slicing:
    """The rows in parts: ``names`` of the parts, in the order to show them, and ``index`` (rows,) int64 into them.

    ``names_are_texts``: whether the names are what rows have in a field, and so leave a report with its texts.
    """

    title: str
    names: Sequence[str]
    index: torch.Tensor
    names_are_texts: bool = False


@dataclass(frozen=True)
class Rows:
    """The rows that were measured, in their order, as the served predictive answers them.

    Attributes:
        labels: (rows,) int64; or soft, (rows, classes) float64, of which ``right`` is the most probable.
        map_probs, probs: (rows, classes), MAP's, None without one, and the served predictive's; 0 at classes that a
            row cannot have.
        score: (rows,) what the review rule compares, nats; threshold: that it is reviewed above, None without one.
        review: (rows,) bool, whether a person is to look at it.
        answered: (rows,) int64, the label that answers, where mistakes have costs; None: the most probable.
        epistemic: (rows,) nats; None where the predictive has none.
        references: where each row is to be found, such as its id or line.
        texts: each row's text; None leaves texts out of the report.
        slices: the rows in parts, one way each.
        groups: (rows,) int64, rows of one number err together; None: every row is independent.

    Raises:
        DataError, NonFiniteError: no rows, columns that do not fit, or what are no probabilities.
    """

    labels: torch.Tensor
    map_probs: torch.Tensor | None
    probs: torch.Tensor
    score: torch.Tensor
    review: torch.Tensor
    references: Sequence[str]
    threshold: float | None = None
    epistemic: torch.Tensor | None = None
    texts: Sequence[str] | None = None
    slices: Sequence[Slicing] = ()
    groups: torch.Tensor | None = None
    answered: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for probs in (self.map_probs, self.probs):
            if probs is not None:
                checked_probs(probs, self.labels)
        rows = len(self.labels)
        columns = {"score": self.score, "review": self.review, "groups": self.groups}
        check_columns(rows, **columns, epistemic=self.epistemic)
        lists = {"references": self.references, "texts": self.texts, **{one.title: one.index for one in self.slices}}
        for name, values in lists.items():
            if values is not None and len(values) != rows:
                raise DataError(f"{name} must have one entry for each of {rows} rows, got {len(values)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> torch.Tensor:
        """(rows,) int64, the label that answers: the most probable one, or of costs the cheapest."""
        return self.probs.argmax(1) if self.answered is None else self.answered

    @property
    def right(self) -> torch.Tensor:
        """(rows,) int64, the label, of a soft one the most probable."""
        return most_probable(self.labels)

    @property
    def wrong(self) -> torch.Tensor:
        """(rows,) bool, whether the label that answers is not the right one."""
        return self.predicted != self.right

    @property
    def confidence(self) -> torch.Tensor:
        """(rows,) float64, the largest probability."""
        return self.probs.double().amax(1)


@dataclass(frozen=True)
class Report:
    """Everything that one page says.

    Attributes:
        measured_on: which rows, in a few words.
        served: name of the predictive that answers, one of ``methods``; reason: why it, in one sentence.
        labels: their names, in class order.
        methods: by name, what ``Evaluation.to_json`` gives, in the order to show them; of predictives with label sets
            also ``sets``.
        gain: the served predictive's NLL less that of temperature scaling: difference, and the low and high end of its
            95 % interval, nats; None where there is nothing to compare.
        unfamiliar: share of the rows that are flagged so; None where nothing flags them.
        questions: rows that each input counts as; with several, rows are not independent.
        notes: further sentences.
        costs: that decisions are made for in place of the target risk; None: there are none.
        suspects: labels to look at, as ``laplora.selection.label_audit`` lists them; None: nobody looked.
        provenance: by name, what the figures were made from; configuration: of the run, as text.
    """

    title: str
    measured_on: str
    served: str
    reason: str
    labels: Sequence[str]
    promise: Promise
    methods: Mapping[str, Mapping[str, Any]]
    rows: Rows
    gain: tuple[float, float, float] | None = None
    unfamiliar: float | None = None
    questions: int = 1
    notes: Sequence[str] = ()
    costs: Costs | None = None
    suspects: Sequence[Mapping[str, Any]] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""

    def __post_init__(self) -> None:
        if self.served not in self.methods:
            raise DataError(f"the served predictive {self.served!r} is not among the methods {sorted(self.methods)}")

    @property
    def cost(self) -> dict[str, Any] | None:
        """The figures of ``laplora.decisions.costs.cost_figures`` of the decisions; None without costs."""
        if self.costs is None:
            return None
        rows, matrix = self.rows, self.costs.matrix(self.labels)
        return cost_figures(matrix, self.costs.review, rows.predicted, rows.labels, ~rows.review, rows.groups)

    @property
    def shows_map(self) -> bool:
        """Whether MAP stands beside each answer: not where nothing was fine-tuned, or the model has no answer."""
        tuned = not self.methods.keys().isdisjoint({"temperature", "laplace"})
        return tuned and "map" in self.methods and self.rows.map_probs is not None

    def without_texts(self) -> Report:
        """Return the report without its rows' texts, and without the slices that are named by values of a field."""
        slices = [one for one in self.rows.slices if not one.names_are_texts]
        suspects = self.suspects and [row | {"text": None} for row in map(dict, self.suspects)]
        return replace(self, rows=replace(self.rows, texts=None, slices=slices), suspects=suspects)
