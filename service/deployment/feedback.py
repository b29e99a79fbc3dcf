"""Feedback that outlives its server and reaches all of a deployment, by way of the database of jobs.

Belongs to the event loop. Answers are written each second, labels at once. Without the database a
server goes on with what it knows, and writes later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from laplora.errors import LaploraError
from service.deployment import answers
from service.feedback.labels import FeedbackStore
from service.feedback.records import Outcome, StoredPrediction
from service.jobs.store.disk import STORAGE_ERRORS, Disk
from service.jobs.store.tasks import cancelled
from service.settings import Settings
from service.telemetry.logs import log_crash

T = TypeVar("T")
#: Seconds between two writes of what was answered, and between two looks at what others labelled.
LOOK_S = 1.0
#: Seconds between two times that old predictions are forgotten.
_PRUNE_S = 60.0
#: The most predictions of one write.
_AT_ONCE = 2000


class SharedFeedback:
    """Keeps a store's predictions and labels in the database, and takes in those of others.

    Args:
        disk: of the jobs, whose database it is.
    """

    def __init__(self, settings: Settings, disk: Disk, store: FeedbackStore) -> None:
        self._settings, self._disk, self._store = settings, disk, store
        self._told, self._pruned = 0, 0.0
        #: Labels that are not in the database yet.
        self._unsaved: dict[str, int] = {}
        self._writing = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write and follow from now on."""
        if self._store.on:
            self._keeper = asyncio.create_task(self._keep_up(), name="laplora-feedback")

    async def close(self) -> None:
        """Write what is not written yet, and follow no more."""
        await cancelled([self._keeper])
        if self._store.on:
            with suppress(*STORAGE_ERRORS):
                await self._write()

    async def give(self, caller: str, items: Sequence[tuple[str, str | list[str]]]) -> list[Outcome]:
        """Record true labels, as ``FeedbackStore.give``, of predictions that any server of the deployment made.

        Raises:
            InvalidRequestError: as there.
            JobsUnavailableError, StorageFullError: an id is another server's, and the database does not answer.
        """
        ids = [one for one, _ in items]
        found = await self._found(ids)
        outcomes = self._store.give(caller, items, found)
        new = {one for one, outcome in zip(ids, outcomes, strict=True) if outcome in ("recorded", "corrected")}
        labelled = {one: self._store.find(one) or found.get(one) for one in new}
        if new:
            self._unsaved |= {
                key: one.right for key, one in labelled.items() if one is not None and one.right is not None
            }
            with suppress(*STORAGE_ERRORS):
                await self._write()
        return outcomes

    async def _found(self, ids: Sequence[str]) -> dict[str, StoredPrediction]:
        try:
            found = await self._in_database(answers.find, ids, self._store.clock)
            elsewhere = self._disk.shared and self._disk.living > 1
            if elsewhere and not all(one in found or self._store.find(one) for one in ids):
                await asyncio.sleep(2 * LOOK_S)  # the server that made it writes it meanwhile
                found = await self._in_database(answers.find, ids, self._store.clock)
            return found
        except STORAGE_ERRORS:
            if self._disk.shared and not all(self._store.find(one) for one in ids):
                raise
            return {}

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._write()
                await self._follow()
                if time.monotonic() >= self._pruned + _PRUNE_S:
                    await self._in_database(answers.prune, self._settings.feedback_keep_s, self._store.rows)
                    self._pruned = time.monotonic()
            except LaploraError:
                pass  # the database does not answer: next time
            except Exception as error:
                log_crash("feedback could not be kept in the database", error)
            await asyncio.sleep(LOOK_S)

    async def _write(self) -> None:
        async with self._writing:
            while waiting := [self._store.unsaved.popleft() for _ in range(min(_AT_ONCE, len(self._store.unsaved)))]:
                try:
                    await self._in_database(answers.keep, waiting, self._store.clock)
                except BaseException:
                    self._store.unsaved.extendleft(reversed(waiting))
                    raise
            if labels := self._unsaved:
                self._unsaved = {}
                try:
                    await self._in_database(answers.label, labels)
                except BaseException:
                    self._unsaved = labels | self._unsaved
                    raise

    async def _follow(self) -> None:
        while True:
            told, labelled = await self._in_database(answers.labelled, self._told, self._store.clock)
            self._store.take(labelled)
            if told == self._told:
                return
            self._told = told

    async def _in_database(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._disk.closed is not None:
            raise self._disk.closed
        return await self._disk.in_database(function, self._disk.tables.database, self._settings.deployment, *arguments)
