"""The changes that this server makes, and how those of all servers that share its jobs are.

Belongs to the event loop. This server's own are in memory, which is right about them; the database of jobs has them
too, as far as it answers, for other servers and for after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel

from service.artifacts.host import LOOK_UP_S
from service.changes import table
from service.changes.table import Change, Kind
from service.errors import (
    ChangeNotFoundError,
    DrainingError,
    IdempotencyConflictError,
    error_detail,
    kind_of,
)
from service.jobs.store.disk import STORAGE_ERRORS, Disk
from service.jobs.store.tasks import cancelled
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.threads import in_daemon_thread

T = TypeVar("T")
#: Makes a change, on a thread of its own, and returns what it comes to; given what to call once nothing refuses it.
Work = Callable[[Callable[[], object]], T]


class Changes:
    """Every change that the server knows of, for as long and as many as of jobs (``job_keep_s``, ``max_jobs``).

    Args:
        disk: of the jobs, whose database the changes are in.
        tell: called after each change, before its end is told: so that it outlives this server.
    """

    def __init__(self, settings: Settings, disk: Disk, tell: Callable[[], Awaitable[None]]) -> None:
        self._settings, self._disk, self.tell = settings, disk, tell
        self._own: dict[str, Change] = {}
        #: The answer to the request of a change that may still be refused.
        self._answers: dict[str, asyncio.Future[Change | Exception]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(
        self,
        kind: Kind,
        artifact: str,
        body: str,
        owner: str,
        key: str | None,
        work: Work[T],
        result_of: Callable[[T], BaseModel],
    ) -> Change:
        """Begin a change, and return it once nothing refuses it any more, or after ``LOOK_UP_S``.

        Args:
            body: of the request; a repeated one has the same.
            key: the caller's name of it. The same one again begins nothing, and returns the first change.
            result_of: returns its result.

        Raises:
            IdempotencyConflictError: the key is another change's.
            Exception: what refuses the change. Nothing is kept of it then.
        """
        request_digest = hashlib.sha256("\0".join((kind, artifact, body)).encode("utf-8", "replace")).hexdigest()
        named = (one for one in self._own.values() if key is not None and (one.owner, one.key) == (owner, key))
        change = next(named, None)
        if change is None:
            self._forget_old()
            about: dict[str, Any] = {"kind": kind, "artifact": artifact, "server": self._disk.server}
            about |= {"owner": owner, "key": key, "asked": request_digest, "created_at": time.time()}
            change = Change(id=secrets.token_hex(16), **about)
            self._own[change.id] = change
            self._answers[change.id] = asyncio.get_running_loop().create_future()
            self._spawn(self._make(change, work, result_of))
        answer = self._answers.get(change.id)
        outcome = change if answer is None else await asyncio.shield(answer)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome.asked != request_digest:
            raise IdempotencyConflictError("this Idempotency-Key is another change's: send another key for another one")
        return outcome

    async def find(self, change_id: str) -> Change:
        """Return a change as it is now.

        Raises:
            ChangeNotFoundError: no server that shares this one's jobs has it.
            JobsUnavailableError, StorageFullError: it is none of this server's own, and the database does not answer.
        """
        if change_id in self._own:
            return self._own[change_id]
        for change in await self._disk.ask(table.find, change_id):
            return change
        raise ChangeNotFoundError(
            "no change of this id: it ended long ago, or is of a server that does not share this one's jobs_url or "
            "jobs_dir; GET /artifacts says what is loaded here"
        )

    async def every(self) -> list[Change]:
        """Return the changes, the newest first; this server's own alone where the database does not answer."""
        known: dict[str, Change] = {}
        with suppress(*STORAGE_ERRORS):
            known = {change.id: change for change in await self._disk.ask(table.every)}
        return sorted((known | self._own).values(), key=lambda change: -change.created_at)[: self._settings.max_jobs]

    async def close(self) -> None:
        """Let go of what is under way: it ends with the process."""
        await cancelled(list(self._tasks))

    async def _make(self, change: Change, work: Work[T], result_of: Callable[[T], BaseModel]) -> None:
        loop, answer = asyncio.get_running_loop(), self._answers[change.id]

        def settle(outcome: Change | Exception) -> None:
            if not answer.done():
                answer.set_result(outcome)
                del self._answers[change.id]

        def begun() -> None:
            change.started_at = time.time()
            settle(change)
            self._spawn(self._keep(change))

        try:
            try:
                keep_s, most = self._settings.job_keep_s, self._settings.max_jobs
                with suppress(*STORAGE_ERRORS):
                    first = await self._disk.ask(table.add, change.model_copy(), keep_s, most)
                    if first.id != change.id:
                        del self._own[change.id]
                        settle(first)
                        return
                loop.call_later(LOOK_UP_S, settle, change)
                making = in_daemon_thread("laplora-change", lambda: work(lambda: loop.call_soon_threadsafe(begun)))
                result = result_of(await asyncio.wrap_future(making)).model_dump(mode="json")
                await self.tell()
                change.result = result
            except Exception as error:
                if not answer.done():
                    del self._own[change.id]
                    settle(error)
                    with suppress(*STORAGE_ERRORS):
                        await self._disk.ask(table.forget, change.id)
                    return
                self._failed(change, error)
            change.finished_at = time.time()
            change.started_at = change.started_at or change.finished_at
            settle(change)
            await self._keep(change)
        finally:
            settle(DrainingError("the server is stopping: try again later"))

    def _failed(self, change: Change, error: Exception) -> None:
        code = kind_of(error).code
        if code == "internal_error":
            log_crash("a change failed", error)
        fields = {"event": "change_failed", "change": change.id, "artifact": change.artifact, "code": code}
        logger.warning("change failed: %s", change.kind, extra=fields)
        change.error = error_detail(error)

    async def _keep(self, change: Change) -> None:
        """Let the database say how a change is, as soon as it answers."""
        while change.id in self._own:
            with suppress(*STORAGE_ERRORS):
                return await self._disk.ask(table.put, change.model_copy())
            await asyncio.sleep(self._settings.job_look_s)

    def _forget_old(self) -> None:
        """Make room for one more."""
        oldest_s = time.time() - self._settings.job_keep_s
        too_many = len(self._own) + 1 - self._settings.max_jobs
        over = [(one.id, one.finished_at) for one in self._own.values() if one.finished_at is not None]
        for number, (change_id, finished_at) in enumerate(over):
            if number < too_many or finished_at < oldest_s:
                del self._own[change_id]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="laplora-change")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
