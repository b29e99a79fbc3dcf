"""The terms of a shadow: which artifact, how often it answers, and when it is to be activated."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

#: A figure in which a candidate can be better than the active artifact.
Better = Literal["accepted_share", "accuracy", "nll"]

#: State of the rule: nothing is asked for, it waits for labels, is fulfilled, or no room is left for more labels.
Verdict = Literal["not_asked", "waiting", "better", "undecided"]


class Terms(BaseModel, frozen=True):
    """Kept in the database of jobs: fields of a newer server are ignored.

    Attributes:
        artifact: the folder's name of the candidate.
        share: of the rows of requests that it answers too, in (0, 1].
        better: figures in which it has to be better for certain, all of them, to be activated; none: it never is.
        confidence: how certain, in (0, 1).
        since: Unix seconds.
    """

    artifact: str
    share: float
    better: tuple[Better, ...] = ()
    confidence: float = 0.95
    since: float = 0.0
