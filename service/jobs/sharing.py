"""Which of the jobs are this server's: its claims, what it leaves to others, and what they did meanwhile.

A job that this server has claimed is ``mine``: memory is right about it, and every write names the claim. Of another
server's, memory has what the database said last (``refresh``).
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from functools import partial

from service.errors import kind_of
from service.jobs.disk import Disk
from service.jobs.known import KnownJobs
from service.jobs.publishing import Publisher
from service.jobs.records import Job
from service.jobs.shown import event_of
from service.jobs.waiting import BackOffs
from service.settings import Settings
from service.telemetry.logs import logger


class Sharing:
    """This server's part of the jobs. Belongs to the event loop."""

    def __init__(self, settings: Settings, disk: Disk, known: KnownJobs, publisher: Publisher) -> None:
        self._settings, self._disk, self._known, self._publisher = settings, disk, known, publisher
        self._back_offs = BackOffs()
        self._refreshing = asyncio.Lock()
        self._refreshed_at = -math.inf

    async def claim(self) -> list[Job]:
        """Say that this server lives, claim its share of the jobs that nobody runs, and return the new ones."""
        settings = self._settings
        self._disk.living = await self._disk.in_database(
            lambda: self._disk.store.claims.hear(
                self._disk.server, alone=not self._disk.shared, lease_s=settings.job_lease_s
            )
        )
        unfinished = {job.number: job for job in self._known.by_id.values() if not job.finished}
        held = [number for number, job in unfinished.items() if job.mine]
        avoided = self._back_offs.now(unfinished)
        left = sum(not job.mine and job.left_at is not None for job in unfinished.values())
        claim = partial(
            self._disk.store.claims.claim,
            self._disk.server,
            max(0, self.share - sum(unfinished[number].shared_out for number in held)),
            without=[*held, *avoided],
            most_left=math.ceil(left / self._disk.living),
        )
        numbers = await self._disk.in_database(claim)
        if not numbers:
            return []
        claimed = await self._disk.in_database(self._disk.store.kept.jobs, numbers)
        jobs = [self._known.take_in(job) for job in claimed if not job.finished]
        for job in jobs:
            job.mine, job.beyond_share = True, job.left_at is not None
            if job.left_at is None:
                job.status, job.paused = "queued", None
            job.pace.clear()
        return jobs

    @property
    def share(self) -> int:
        """How many unfinished jobs this server may have: all, or as many as each of those that live.

        What another one cannot run is no part of it.
        """
        unfinished = sum(job.shared_out for job in self._known.by_id.values())
        return max(1, math.ceil(unfinished / self._disk.living)) if self._disk.shared else max(1, unfinished)

    async def release(self, job: Job) -> None:
        """Let another server have a job of which nothing runs here."""
        job.mine = False
        await self._disk.in_database(self._disk.store.claims.release, job.number, job.fence)
        await self._disk.forget_copy(job.id)

    async def left_s(self, job: Job) -> float:
        """Return for how many seconds no server that claimed a job has had what it needs; 0 where one has."""
        return await self._disk.in_database(self._disk.store.claims.left_s, job.number)

    async def leave(self, job: Job, error: Exception, reason: str) -> None:
        """Let another server have a job that this one cannot run, and do not claim it again for a while.

        Args:
            error: why it cannot; reason: what the job waits for, in words.

        Raises:
            StorageFullError, JobsUnavailableError, ClaimLostError: nothing was kept.
        """
        paused = {"code": kind_of(error).code, "message": reason}
        new = job.paused != paused
        event, fence = event_of(replace(job, status="paused", paused=paused)), job.fence
        job.left_at, sequence = await self._disk.in_database(
            lambda: self._disk.store.claims.leave_job(job.number, paused, event if new else None, fence=fence)
        )
        job.status, job.paused, job.server, job.mine = "paused", paused, None, False
        job.pace.clear()
        self._back_offs.put(job.number)
        if new:
            fields = {"event": "job_left", "job": job.id, "code": paused["code"]}
            logger.warning("a job is left to another server: %s", reason, extra=fields)
            self._publisher.happened(job, sequence, event)
        else:
            self._known.wake(job)
        await self._disk.forget_copy(job.id)

    async def refresh(self) -> list[Job]:
        """Learn what other servers did; return the jobs that were this one's, and are not any more.

        Raises:
            StorageFullError, JobsUnavailableError: as of ``Database.transaction``.
        """
        if not self._disk.shared or self._disk.closed is not None:
            return []
        called_at = time.monotonic()
        async with self._refreshing:
            if self._refreshed_at >= called_at:
                return []  # one that began after this call was made has it all
            begun_at = time.monotonic()
            known = {job.number: job for job in self._known.by_id.values()}
            versions = await self._disk.in_database(self._disk.store.kept.versions)
            lost = [job for number, job in known.items() if number not in versions and job.id in self._known.by_id]
            gone = [job for job in lost if job.mine]
            for job in lost:
                self._known.forget(job)
            changed = [
                number
                for number, (fence, events) in versions.items()
                if (own := known.get(number)) is None or _version(own) < (fence, 0 if own.mine else events)
            ]
            for read in await self._disk.in_database(self._disk.store.kept.jobs, changed) if changed else ():
                now = self._known.by_id.get(read.id)
                # What this server wrote meanwhile is newer than what was read.
                if now is not None and _version(now) >= (read.fence, 0 if now.mine else read.events):
                    continue
                if now is not None and now.mine:
                    gone.append(now)
                self._known.take_in(read)
            self._refreshed_at = begun_at
            return gone

    def runs(self, job: Job) -> None:
        """Note that a job runs here: should this server leave it another time, it is not for long."""
        self._back_offs.forget(job.number)


def _version(job: Job) -> tuple[int, int]:
    """Return what tells whether the database is ahead: of a job that runs here, only another claim, or its end."""
    return job.fence, 0 if job.mine else job.events
