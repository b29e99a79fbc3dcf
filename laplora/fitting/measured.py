"""Every predictive's metrics on one set of rows, as a value that prints as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from laplora.fitting.gain import Gain
from laplora.metrics.label_sets import SetQuality
from laplora.metrics.scores import Evaluation
from laplora.metrics.several_labels import LabelsQuality
from laplora.predictive.kinds import PredictiveName

_COLUMNS = ("accuracy", "nll", "ece", "brier", "auroc_error")


@dataclass(frozen=True)
class Measured:
    """Metrics by predictive; ``sets`` are the conformal label sets'. NLL in nats, ECE over 15 bins.

    Where several labels may be right, a row of the metrics is one label of an input. Then ``labels`` are their names,
    in order, and ``by_label`` has by predictive the metrics of each; else both are empty. ``unfamiliar`` is the share
    of inputs that are flagged so, and have sets of every label; None where nothing says which. ``gain`` is that of the
    recommended predictive over temperature scaling; None where that is temperature scaling.
    """

    evaluations: Mapping[str, Evaluation]
    sets: Mapping[str, SetQuality]
    recommended: PredictiveName
    labels: tuple[str, ...] = ()
    by_label: Mapping[str, LabelsQuality] = field(default_factory=dict)
    unfamiliar: float | None = None
    gain: Gain | None = None

    def __getitem__(self, predictive: str) -> Evaluation:
        """Return one predictive's metrics; KeyError where there is none of that name."""
        return self.evaluations[predictive]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, by predictive."""
        values = {name: evaluation.to_json() for name, evaluation in self.evaluations.items()}
        for name, quality in self.sets.items():
            values[name]["sets"] = vars(quality)
        for name, labels in self.by_label.items():
            values[name] |= labels.to_json(self.labels)
        return values

    def __str__(self) -> str:
        """Return a table, the recommended predictive marked, and what that gains over temperature scaling."""
        rows: list[tuple[str, ...]] = [("", *_COLUMNS, "coverage", "set size")]
        for name, evaluation in self.evaluations.items():
            values = [getattr(evaluation, column) for column in _COLUMNS]
            values += [self.sets[name].coverage, self.sets[name].mean_size]
            shown = ["-" if value is None else f"{value:.3f}" for value in values]
            rows.append((f"{name} *" if name == self.recommended else name, *shown))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        count = next(iter(self.evaluations.values())).rows
        each = len(self.labels) or 1
        rows_of = f"{count} rows" if each == 1 else f"{count // each} rows, each of {each} labels measured on its own"
        flagged = "" if self.unfamiliar is None else f"; {self.unfamiliar:.1%} unfamiliar"
        below = [f"{rows_of}{flagged}; * answers unless another is named", *([str(self.gain)] if self.gain else [])]
        return "\n".join([*lines, *below])
