"""Which of the jobs are this server's: its claims, what it leaves to others, and what they did meanwhile.

A job that this server has claimed is ``mine``: memory is right about it, and every write names the claim. For another
server's, memory has the last state of the database (``refresh``).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection
from functools import partial

from service.errors import kind_of
from service.jobs.store.disk import Disk
from service.jobs.store.memory import JobMemory
from service.jobs.store.records import Job
from service.settings import Settings
from service.telemetry.logs import logger

#: Longest pause of ``BackOffs``, in first ones.
_LONGEST_BACK_OFF = 60


class BackOffs:
    """The jobs that this server could not run while another may, by number, and until when it does not try them.

    Args:
        first_s: how long the first pause is; the next one is twice as long, up to sixty times.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._tried: dict[int, tuple[int, float]] = {}

    def put(self, job: int) -> float:
        """Note that a job could not be run; return for how many seconds it is not tried."""
        tried, _ = self._tried.get(job, (0, 0.0))
        pause_s = self._first_s * min(_LONGEST_BACK_OFF, 2.0 ** min(tried, 10))
        self._tried[job] = (tried + 1, time.monotonic() + pause_s)
        return pause_s

    def now(self, unfinished: Collection[int]) -> list[int]:
        """Return the jobs that are not to be tried now; those that are not among the unfinished ones are forgotten."""
        self._tried = {job: tried for job, tried in self._tried.items() if job in unfinished}
        return [job for job, (_, until) in self._tried.items() if until > time.monotonic()]

    def forget(self, job: int) -> None:
        """Begin anew with a job: it runs."""
        self._tried.pop(job, None)


class Sharing:
    """This server's part of the jobs. Belongs to the event loop."""

    def __init__(self, settings: Settings, disk: Disk, memory: JobMemory) -> None:
        self._settings, self._disk, self._memory = settings, disk, memory
        self._back_offs = BackOffs(settings.job_look_s)
        self._refreshing = asyncio.Lock()
        self._refreshed_at = -math.inf

    async def claim(self) -> list[Job]:
        """Say that this server lives, claim its share of the jobs that nobody runs, and return the new ones."""
        settings = self._settings
        self._disk.living = await self._disk.in_database(
            lambda: self._disk.tables.claims.hear(
                self._disk.server, alone=not self._disk.shared, lease_s=settings.job_lease_s
            )
        )
        unfinished = {job.number: job for job in self._memory.by_id.values() if not job.finished}
        held = [number for number, job in unfinished.items() if job.mine]
        lost = [job.number for job in self._memory.by_id.values() if job.lost]
        avoided = self._back_offs.now(unfinished)
        left = sum(not job.mine and job.left_at is not None for job in unfinished.values())
        claim = partial(
            self._disk.tables.claims.claim,
            self._disk.server,
            max(0, self.share - sum(unfinished[number].shared_out for number in held)),
            without=[*held, *avoided, *lost],
            most_left=math.ceil(left / self._disk.living),
        )
        numbers = await self._disk.in_database(claim)
        if not numbers:
            return []
        claimed = await self._disk.in_database(self._disk.tables.reads.jobs, numbers)
        jobs = [self._memory.take_in(job) for job in claimed if not job.finished]
        for job in jobs:
            job.mine, job.beyond_share = True, job.left_at is not None
            if job.left_at is None:
                job.status, job.paused = "queued", None
            job.pace.clear()
        self._memory.count()
        return jobs

    @property
    def share(self) -> int:
        """How many unfinished jobs this server may have: all, or as many as each of those that live.

        Jobs that another one cannot run do not count.
        """
        unfinished = sum(job.shared_out for job in self._memory.by_id.values())
        return max(1, math.ceil(unfinished / self._disk.living)) if self._disk.shared else max(1, unfinished)

    async def release(self, job: Job) -> None:
        """Let another server have a job of which nothing runs here."""
        job.mine = False
        await self._disk.in_database(self._disk.tables.claims.release, job.number, job.fence)
        await self._disk.forget_copy(job.id)

    async def left_s(self, job: Job) -> float:
        """Return for how many seconds no server that claimed a job has had what it needs; 0 where one has."""
        return await self._disk.in_database(self._disk.tables.claims.left_s, job.number)

    async def leave(self, job: Job, error: Exception, reason: str) -> None:
        """Let another server have a job that this one cannot run, and do not claim it again for a while.

        Args:
            error: why it cannot; reason: what the job waits for, in words.

        Raises:
            StorageFullError, JobsUnavailableError, ClaimLostError: nothing was kept.
        """
        paused = {"code": kind_of(error).code, "message": reason}
        if job.paused != paused:
            fields = {"event": "job_left", "job": job.id, "code": paused["code"]}
            logger.warning("a job is left to another server: %s", reason, extra=fields)
        leave = partial(self._disk.tables.claims.leave_job, job.number, paused, fence=job.fence)
        job.left_at, job.changes = await self._disk.in_database(leave)
        job.status, job.paused, job.server, job.mine = "paused", paused, None, False
        job.pace.clear()
        self._back_offs.put(job.number)
        self._memory.count()
        await self._disk.forget_copy(job.id)

    async def refresh(self) -> list[Job]:
        """Learn what other servers did; return the jobs that were this one's or anybody's, and are not any more.

        They must not run here any more, and copies of their uploads are removed.

        Raises:
            StorageFullError, JobsUnavailableError: as of ``Database.transaction``.
        """
        if not self._disk.shared or self._disk.closed is not None:
            return []
        called_at = time.monotonic()
        async with self._disk.in_time(), self._refreshing:
            if self._refreshed_at >= called_at:
                return []  # one that began after this call was made has it all
            begun_at = time.monotonic()
            before = {job.number: job for job in self._memory.by_id.values()}
            versions = await self._disk.in_database(self._disk.tables.reads.versions)
            changed = [
                number
                for number, (fence, changes) in versions.items()
                if (known_job := before.get(number)) is None or _behind(known_job, fence, changes)
            ]
            reads = await self._disk.in_database(self._disk.tables.reads.jobs, changed) if changed else []
            # From here on nothing fails: what is noted as gone is returned.
            lost = [job for number, job in before.items() if number not in versions and job.id in self._memory.by_id]
            gone = list(lost)
            for job in lost:
                self._memory.forget(job)
            for read in reads:
                now = self._memory.by_id.get(read.id)
                # This server's writes since then are newer than the read.
                if now is not None and not _behind(now, read.fence, read.changes):
                    continue
                if now is not None and (now.mine or read.finished or read.server not in (None, self._disk.server)):
                    gone.append(now)
                self._memory.take_in(read)
            self._refreshed_at = begun_at
            return gone

    def runs(self, job: Job) -> None:
        """Note that a job runs here: should this server leave it another time, it is not for long."""
        self._back_offs.forget(job.number)


def _behind(job: Job, fence: int, changes: int) -> bool:
    """Return whether the database is ahead: of a job that runs here, or was lost, only by another claim, or its end."""
    return job.fence < fence or (job.fence == fence and not (job.mine or job.lost) and job.changes < changes)
