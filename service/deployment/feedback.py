"""Feedback that outlives its server and reaches all of a deployment, by way of the database of jobs.

Belongs to the event loop. Answers are written each second, labels at once. Without the database a
server goes on with what it knows, and writes later.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
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
#: The most requests that wait for an id that is perhaps not written yet.
_MOST_WAIT = 100
#: Characters of an id, also of ids of other servers; nothing else is looked for.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SharedFeedback:
    """Keeps a store's predictions and labels in the database, and takes in those of others.

    Args:
        disk: of the jobs, whose database it is.
    """

    def __init__(self, settings: Settings, disk: Disk, store: FeedbackStore) -> None:
        self._settings, self._disk, self._store = settings, disk, store
        #: The number of the last label that was taken in; None before all that were there at the start.
        self._told: int | None = None
        self._pruned, self._waiting = 0.0, 0
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
        found = await self._found(caller, ids)
        outcomes = self._store.give(caller, items, found or {})
        new = {one for one, outcome in zip(ids, outcomes, strict=True) if outcome in ("recorded", "corrected")}
        labelled = {one: self._store.find(one) or (found or {}).get(one) for one in new}
        if new:
            self._unsaved |= {
                key: one.right for key, one in labelled.items() if one is not None and one.right is not None
            }
            while len(self._unsaved) > self._store.rows:
                del self._unsaved[next(iter(self._unsaved))]
            if found is not None:  # else the database is away, and is not waited for once more
                with suppress(*STORAGE_ERRORS):
                    await self._write()
        return outcomes

    async def _found(self, caller: str, ids: Sequence[str]) -> dict[str, StoredPrediction] | None:
        """Return what the database has of these ids; None if it is away and this server knows them all."""

        def lacks(found: Mapping[str, StoredPrediction]) -> bool:
            known = (found.get(one) or self._store.find(one) for one in ids)
            return any(one is None or one.caller != caller for one in known)

        wanted = [one for one in ids if _ID.fullmatch(one)]
        try:
            found = await self._in_database(answers.find, wanted, self._store.clock)
            if self._disk.shared and self._disk.living > 1 and self._waiting < _MOST_WAIT and lacks(found):
                self._waiting += 1
                try:
                    await asyncio.sleep(2 * LOOK_S)  # the server that made it writes it meanwhile
                finally:
                    self._waiting -= 1
                found = await self._in_database(answers.find, wanted, self._store.clock)
            return found
        except STORAGE_ERRORS:
            if self._disk.shared and lacks({}):
                raise
            return None

    async def _keep_up(self) -> None:
        while True:
            for step in (self._write, self._follow, self._prune):
                try:
                    await step()
                except LaploraError:
                    pass  # the database does not answer: next time
                except Exception as error:
                    log_crash("feedback could not be kept in the database", error)
            await asyncio.sleep(LOOK_S)

    async def _prune(self) -> None:
        if time.monotonic() >= self._pruned + _PRUNE_S:
            await self._in_database(answers.prune, self._settings.feedback_keep_s, self._store.rows)
            self._pruned = time.monotonic()

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
        if self._told is None:
            # In the order of first labels; whatever is told from here on comes by the look after it.
            top, first = await self._in_database(answers.last_told), 0
            before = -1
            while first != before:
                before = first
                by_first = partial(answers.labelled, by_first=True)
                first, labelled = await self._in_database(by_first, first, self._store.clock)
                self._store.take((key, one, True) for key, one, _ in labelled)
            self._told = top
        last, before = self._told, -1
        while self._told != before:
            before = self._told
            told, labelled = await self._in_database(answers.labelled, self._told, self._store.clock)
            self._store.take((key, one, number > last) for key, one, number in labelled)
            self._told = told

    async def _in_database(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._disk.closed is not None:
            raise self._disk.closed
        return await self._disk.in_database(function, self._disk.tables.database, self._settings.deployment, *arguments)
