"""The candidate: takes a share of answered requests, answers them again while nothing else is to do, and counts.

Belongs to the event loop. A request is never held up: its rows are taken after it was answered, wait in a small queue
of their own, and go to the device a few at a time, each time that no request waits or runs. Rows that wait too long or
find no room are missed, and counted as such.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laplora.errors import ArtifactIncompatibleError, LaploraError
from service.artifacts.host import ArtifactHost
from service.errors import InvalidRequestError, kind_of
from service.feedback.labels import FeedbackStore
from service.scoring.fairness import JOB_PREFIX
from service.scoring.plan import Plan
from service.scoring.scorer import Scorer
from service.scoring.ticket import Ask
from service.shadow.seen import Seen
from service.shadow.terms import Terms
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.decisions.wanted import Wanted
    from service.scoring.model import Model
    from service.shadow.compared import Compared

#: Rows that go to the device at once: a request that comes meanwhile waits for no more than these.
_AT_ONCE = 4
#: Most rows that wait, most characters of theirs, and how long one may wait, seconds.
_MOST_ROWS, _MOST_CHARACTERS, _MOST_WAIT_S = 512, 4_000_000, 30.0
#: Seconds between two looks at whether the server is idle, and at whether the candidate is better.
_IDLE_LOOK_S, RULE_LOOK_S = 0.01, 30.0
#: A comparison is used again for so many times as long as it took.
_REUSED = 10


@dataclass(frozen=True)
class _Taken:
    """Answered rows of one request; ``began``: monotonic seconds; ``between``: digests of active and candidate."""

    began: float
    between: tuple[str, str]
    inputs: Sequence[Mapping[str, Any]]
    answers: Sequence[Prediction]
    ids: Sequence[str]
    truncate: bool
    wanted: Wanted | None

    @property
    def characters(self) -> int:
        return sum(len(str(value)) for fields in self.inputs for value in fields.values())


class Candidate:
    """The shadow of the active artifact, if there is one.

    Attributes:
        terms: what was asked of it.
    """

    def __init__(self, artifacts: ArtifactHost, scorer: Scorer, feedback: FeedbackStore, metrics: Metrics) -> None:
        self._artifacts, self._scorer, self._feedback, self._metrics = artifacts, scorer, feedback, metrics
        self.terms: Terms | None = None
        self._waiting: deque[_Taken] = deque()
        self._rows = self._characters = 0
        self._there = asyncio.Event()
        #: Digests of the active artifact and the shadow that ``_seen`` is of.
        self._between: tuple[str, str] | None = None
        self._seen = Seen()
        self._comparing = asyncio.Lock()
        #: The last comparison, what it was of, and until when it counts.
        self._compared: tuple[object, float, Compared] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def in_force(self) -> Terms | None:
        """Return the terms; they end once the candidate is the active artifact, so that nobody's way back is undone."""
        active = self._artifacts.active
        if active is None or self.terms is None:
            return None
        if active.artifact.path.name == self.terms.artifact:
            self.begin(None)
        return self.terms

    def check(self, terms: Terms) -> None:
        """Check that a loaded artifact can be the shadow of the active one.

        Raises:
            NotReadyError, ArtifactNotLoadedError: as ``ArtifactHost``.
            InvalidRequestError: it is the active one, or labels are asked for that are never told.
            ArtifactIncompatibleError: what is right for one is no answer of the other, or it takes other inputs.
        """
        active = self._artifacts.require_active()
        with self._artifacts.shelf.lease(terms.artifact) as model:
            if model is active:
                raise InvalidRequestError("the artifact is the active one: name another one")
            mine, its = active.artifact.manifest, model.artifact.manifest
            if set(mine.labels) != set(its.labels) or mine.likelihood != its.likelihood:
                raise ArtifactIncompatibleError("its labels are others than the active one's: no label is of both")
            fields = [set(manifest.template.template().fields) for manifest in (mine, its)]
            if fields[0] != fields[1] or mine.template.answered != its.template.answered:
                raise ArtifactIncompatibleError("its inputs have other fields than the active artifact's")
        if terms.better and not self._feedback.on:
            raise InvalidRequestError(
                "the server keeps no predictions for labels (feedback_rows is 0), so nothing can be activated",
                field="activate_if_better",
            )
        if set(terms.better) == {"accepted_share"}:
            raise InvalidRequestError(
                "who accepts more is not better for that: add accuracy or nll", field="activate_if_better"
            )

    def begin(self, terms: Terms | None) -> None:
        """Obey these terms from now on, and forget what was seen under others; None ends the shadow."""
        if terms != self.terms:
            self.terms, self._between, self._seen = terms, None, Seen()
            self._waiting.clear()
            self._rows = self._characters = 0
            self._metrics.clear_shadow()

    def start(self, activate: Callable[[Model], Awaitable[object]]) -> None:
        """Answer from now on, and look whether the terms are fulfilled; ``activate`` takes the model as compared."""
        self._tasks = [
            asyncio.create_task(self._answer_all(), name="laplora-shadow"),
            asyncio.create_task(self._watch(activate), name="laplora-shadow-rule"),
        ]

    def stop(self) -> None:
        """Answer no more."""
        for task in self._tasks:
            task.cancel()

    def offer(self, plan: Plan, wanted: Wanted | None, answers: Sequence[Prediction], ids: Sequence[str]) -> None:
        """Take a share of what the active artifact answered by the predictive that it recommends; never raises.

        Args:
            wanted: that the answers were decided for; ids: of the answers, none where no labels are taken.
        """
        terms, model = self.in_force(), plan.model
        if terms is None or plan.uncorrected or model is not self._artifacts.active:
            return
        rows = [i for i in range(len(answers)) if random.random() < terms.share]
        shadow = self._artifacts.shelf.find(terms.artifact) if rows else None
        if shadow is None or plan.ask.predictive != model.recommended:
            return
        between = model.artifact.digest, shadow.artifact.digest
        if between != self._between:
            self._between, self._seen = between, Seen()
        taken = _Taken(
            time.monotonic(),
            between,
            [plan.inputs[i] for i in rows],
            [answers[i] for i in rows],
            [ids[i] for i in rows] if ids else [],
            plan.truncate,
            wanted,
        )
        if self._rows + len(rows) > _MOST_ROWS or self._characters + taken.characters > _MOST_CHARACTERS:
            self._miss("busy", len(rows))
            return
        self._rows, self._characters = self._rows + len(rows), self._characters + taken.characters
        self._waiting.append(taken)
        self._there.set()

    async def compare(self) -> tuple[Model, Model, Compared] | None:
        """Return the active model, the candidate and how they compare; None without a loaded candidate.

        It takes a thread for a quarter of a second with 1,000 labels, one at a time, and is used again for a while.
        """
        from service.shadow.compared import compared  # torch

        terms, active = self.in_force(), self._artifacts.active
        model = None if terms is None else self._artifacts.shelf.find(terms.artifact)
        if terms is None or active is None or model is None:
            return None
        between = active.artifact.digest, model.artifact.digest
        seen = self._seen.copy() if between == self._between else Seen()
        keys = [(one.artifact.digest, str(one.recommended)) for one in (model, active)]
        async with self._comparing:
            of, began = (terms, between), time.monotonic()
            if self._compared is None or self._compared[0] != of or began >= self._compared[1]:
                pairs, whole = self._feedback.beside(keys[0], keys[1], terms.since)
                done = await asyncio.to_thread(compared, terms, seen, pairs, whole=whole)
                ended = time.monotonic()
                self._compared = of, ended + _REUSED * (ended - began), done
            return active, model, self._compared[2]

    async def _answer_all(self) -> None:
        while True:
            while not self._waiting:
                self._there.clear()
                await self._there.wait()
            taken = self._waiting.popleft()
            self._rows, self._characters = self._rows - len(taken.inputs), self._characters - taken.characters
            for start in range(0, len(taken.inputs), _AT_ONCE):
                rows = slice(start, start + _AT_ONCE)
                try:
                    missed = await self._answer(taken, rows)
                except LaploraError:
                    missed = "failed"
                except Exception as error:
                    log_crash("a shadow's answer failed", error)
                    missed = "failed"
                if missed is not None:
                    self._miss(missed, len(taken.inputs[rows]))

    async def _answer(self, taken: _Taken, rows: slice) -> str | None:
        """Answer rows once the server is idle; return why they are missed, None if they are not."""
        while self._scorer.backend.requests:
            if time.monotonic() - taken.began > _MOST_WAIT_S:
                return "busy"
            await asyncio.sleep(_IDLE_LOOK_S)
        terms = self.in_force()
        if terms is None:
            return None
        with self._artifacts.shelf.lease(terms.artifact) as model:
            deadline = time.monotonic() + _MOST_WAIT_S
            predictive = str(model.recommended)
            plan = Plan(
                model,
                taken.inputs[rows],
                ask=Ask(predictive),
                caller=f"{JOB_PREFIX}shadow",
                truncate=taken.truncate,
                deadline=deadline,
            )
            answers = model.decided(await self._scorer.score(plan), taken.wanted)
        if not all(answer.finite for answer in answers):
            return "failed"
        if terms is not self.in_force() or not taken.between == self._between == (
            taken.between[0],
            model.artifact.digest,
        ):
            return None  # another version of either came meanwhile
        for served, answer in zip(taken.answers[rows], answers, strict=True):
            self._metrics.count_shadow(model.artifact.name, *self._seen.count(served, answer))
        if taken.ids:
            self._feedback.remember_beside(taken.ids[rows], model, predictive, answers)
        return None

    def _miss(self, why: str, rows: int) -> None:
        self._seen.missed[why] += rows
        if (terms := self.in_force()) is not None:
            self._metrics.count_shadow_missed(terms.artifact, why, rows)

    async def _watch(self, activate: Callable[[Model], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(RULE_LOOK_S)
            try:
                if (terms := self.in_force()) is None or not terms.better:
                    continue
                done = await self.compare()
                if done is not None and done[2].verdict == "better" and terms is self.in_force():
                    fields = {"event": "shadow_better", "artifact": terms.artifact, "reason": done[2].reason}
                    logger.info("the shadow is better by the rule that was stated", extra=fields)
                    await activate(done[1])
                    self.begin(None)
            except LaploraError as error:  # another change runs, or the server is leaving: the next look tries again
                name = "" if self.terms is None else self.terms.artifact
                fields = {"event": "change_failed", "change": "", "artifact": name, "code": kind_of(error).code}
                logger.warning("the shadow could not be activated: %s", error, extra=fields)
            except Exception as error:
                log_crash("whether a shadow is better could not be seen", error)
