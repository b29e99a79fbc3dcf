"""Feedback that outlives its server and reaches all of a deployment, by way of the database of jobs.

Belongs to the event loop. Answers are written each second, labels at once. Without the database a
server goes on with what it knows, and writes later.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from laplora.errors import LaploraError
from service.deployment import answers
from service.feedback.labels import BESIDE, FeedbackStore
from service.feedback.records import Outcome, StoredPrediction
from service.jobs.store.disk import STORAGE_ERRORS, Disk
from service.jobs.store.tasks import cancelled
from service.settings import Settings
from service.telemetry.logs import log_crash

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
        answer = await self._found(caller, ids)
        found = answer or {}
        for key in self._unsaved.keys() & found.keys():
            found[key].right = self._unsaved[key]
        outcomes = self._store.give(caller, items, found)
        for key, outcome in zip(ids, outcomes, strict=True):
            one = self._store.find(key) or found.get(key)
            if outcome in ("recorded", "corrected") and one is not None and one.right is not None:
                self._unsaved[key] = one.right
        while len(self._unsaved) > self._store.rows:
            del self._unsaved[next(iter(self._unsaved))]
        if self._unsaved and answer is not None:  # else the database is away, and is not waited for once more
            with suppress(*STORAGE_ERRORS):
                await self._write()
        return outcomes

    async def _found(self, caller: str, ids: Sequence[str]) -> dict[str, StoredPrediction] | None:
        """Return what the database has of these ids; None if it is away and this server knows them all."""

        def lacks(found: Mapping[str, StoredPrediction]) -> bool:
            known = (found.get(one) or self._store.find(one) for one in ids)
            return any(one is None or one.caller != caller for one in known)

        wanted = [key for one in ids if _ID.fullmatch(one) for key in (one, BESIDE + one)]
        try:
            found = await self._disk.ask(answers.find, self._settings.deployment, wanted, self._store.clock)
            if self._disk.shared and self._disk.living > 1 and self._waiting < _MOST_WAIT and lacks(found):
                self._waiting += 1
                try:
                    await asyncio.sleep(2 * LOOK_S)  # the server that made it writes it meanwhile
                finally:
                    self._waiting -= 1
                found = await self._disk.ask(answers.find, self._settings.deployment, wanted, self._store.clock)
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
            await self._disk.ask(
                answers.prune, self._settings.deployment, self._settings.feedback_keep_s, self._store.rows
            )
            self._pruned = time.monotonic()

    async def _write(self) -> None:
        async with self._writing:
            while waiting := [self._store.unsaved.popleft() for _ in range(min(_AT_ONCE, len(self._store.unsaved)))]:
                try:
                    await self._disk.ask(answers.keep, self._settings.deployment, waiting, self._store.clock)
                except BaseException:
                    self._store.unsaved.extendleft(reversed(waiting))
                    raise
            self._unsaved |= self._store.told_beside()
            if labels := dict(self._unsaved):
                await self._disk.ask(answers.label, self._settings.deployment, labels)
                self._unsaved = {key: right for key, right in self._unsaved.items() if labels.get(key) != right}

    async def _follow(self) -> None:
        if self._told is None:
            # In the order of first labels; whatever is told from here on comes by the look after it.
            top = await self._disk.ask(answers.last_told, self._settings.deployment)
            await self._take(0, by_first=True)
            self._told = top
        self._told = await self._take(self._told)

    async def _take(self, since: int, *, by_first: bool = False) -> int:
        """Take in what was labelled since a number, as ``answers.labelled`` has it, and return the last one's."""
        page, last, before = partial(answers.labelled, by_first=by_first), since, -1
        while last != before:
            before = last
            last, labelled = await self._disk.ask(page, self._settings.deployment, last, self._store.clock)
            self._store.take((key, one, first > since) for key, one, first in labelled)
        return last
