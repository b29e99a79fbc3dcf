"""The common parts of experts with a head: the fit on labelled rows, answers, and labels that come or go later.

A head without an offset does not look at an adapter: all labelled rows train it, and its answers are honest in all of
them. One with an offset corrects log probabilities of an adapter, which are honest on some rows alone: these train it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch

from laplora.errors import DataError
from laplora.experts.answering import AnswersByHead
from laplora.experts.base import FeatureSource, Labelled, LogProbSource, Outputs
from laplora.head.fit import FittedHead, answered_by_folds, fit
from laplora.head.head import Head

#: Distance to a row, as a share of its features' length, up to which another one is its copy. Rounding takes 1e-5;
#: questions of TREC are .1 apart.
COPY = 1e-3
#: The only block of the source ``last_state``.
LAST = "last"


@dataclass(frozen=True)
class HeadExpert(AnswersByHead):
    """A head on features of a pass, alone or as a correction of other log probabilities; an ``Expert``.

    Attributes:
        name: of the expert; source: of its features; offset: of the log probabilities that it corrects.
        fitted: the head with its rows.
        places: (head's rows,) int64, which labelled rows those are.
        rows: labelled rows in all.
        seconds: of the head's fit, without the passes.
    """

    name: str
    source: FeatureSource
    fitted: FittedHead
    places: torch.Tensor = field(repr=False)
    rows: int
    offset: LogProbSource | None = None
    seconds: float = 0.0

    @property
    def held_out(self) -> torch.Tensor:
        return self._spread_out(self.fitted.held_out)

    def without(self, fold: int) -> torch.Tensor:
        """Return ``held_out`` as folds within the others answer it, NaN in the fold's rows.

        Raises:
            DataError: it learned or forgot labels since: what was weighed by the fit stays.
        """
        if fold not in self.fitted.inner:
            raise DataError(f"{self.name} has no answers without fold {fold}: fit it anew, without given precisions")
        return self._spread_out(self.fitted.inner[fold])

    def _spread_out(self, answers: torch.Tensor) -> torch.Tensor:
        """Return answers of the head's rows at their places among the labelled rows, (rows, classes); NaN elsewhere."""
        if self.fitted.rows.likelihood == "bernoulli":  # a head says the log probability of presence
            answers = answers - (-answers.expm1()).clamp_min(torch.finfo(answers.dtype).tiny).log()
        spread = answers.new_full((self.rows, answers.shape[1]), torch.nan)
        spread[self.places] = answers
        return spread

    @property
    def head(self) -> Head:
        return self.fitted.head

    def copies(self, outputs: Outputs) -> torch.Tensor:
        """Return (rows, own) bool which of some rows have the features of which of its own, but for rounding."""
        apart, size = torch.zeros(()), torch.zeros(())
        for name, block in self.fitted.rows.blocks.items():
            fitted_features, new = block.flatten(1).double(), outputs.features[self.source][name].flatten(1).double()
            apart, size = apart + torch.cdist(new, fitted_features).square(), size + fitted_features.square().sum(1)
        return apart <= COPY**2 * size

    def learn(self, outputs: Outputs, labelled: Labelled) -> HeadExpert:
        """Return the expert that learned further rows, behind those that it has; their folds are the head's.

        Args:
            labelled: its groups are numbered on from those of the rows before.
        """
        train = torch.ones_like(labelled.honest) if self.offset is None else labelled.honest
        features, offset, mask = self._inputs(outputs.take(train))
        new = labelled.take(train)
        fitted = self.fitted.learn(features, new.labels, offset=offset, class_mask=mask, groups=new.groups)
        places = torch.cat([self.places, self.rows + train.nonzero()[:, 0]])
        return replace(self, fitted=fitted, places=places, rows=self.rows + len(labelled))

    def before(self, learned: HeadExpert) -> HeadExpert:
        """Return what it became by learning, with ``held_out`` of the heads of folds as they were before."""
        fitted = learned.fitted
        held_out = answered_by_folds(fitted.rows, fitted.folds, self.fitted.outer)
        return replace(learned, fitted=replace(fitted, held_out=held_out))

    def forget(self, rows: torch.Tensor) -> HeadExpert:
        """Return the expert that never had some labelled rows, (some,) int64."""
        gone = torch.zeros(self.rows, dtype=torch.bool)
        gone[rows] = True
        kept = (~gone).cumsum(0) - 1
        of_head = gone[self.places]
        fitted = self.fitted.forget(of_head.nonzero()[:, 0]) if bool(of_head.any()) else self.fitted
        return replace(self, fitted=fitted, places=kept[self.places[~of_head]], rows=int((~gone).sum()))


def fit_head(
    name: str,
    outputs: Outputs,
    labelled: Labelled,
    source: FeatureSource,
    *,
    offset: LogProbSource | None = None,
    temper: bool = False,
    seed: int = 0,
) -> HeadExpert:
    """Return an expert whose head is fitted on labelled rows: all, or with an offset the honest ones.

    Args:
        outputs: of the labelled rows; offset: of which of its log probabilities the head corrects; temper, seed: as of
            ``laplora.head.fit``.

    Raises:
        HeadError: as of ``laplora.head.fit``.
    """
    train = torch.ones_like(labelled.honest) if offset is None else labelled.honest
    some, of = outputs.take(train), labelled.take(train)
    start = time.monotonic()
    fitted = fit(
        some.features[source],
        of.labels if of.likelihood == "categorical" else of.labels.double(),
        offset=None if offset is None else some.log_probs[offset],
        temper=temper,
        class_mask=of.class_mask,
        groups=of.groups,
        folds=of.folds,
        seed=seed,
        likelihood=of.likelihood,
        without=labelled.without,
    )
    places, seconds = train.nonzero()[:, 0], time.monotonic() - start
    return HeadExpert(name, source, fitted, places, len(labelled), offset, seconds)
