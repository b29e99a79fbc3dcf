"""What happens to a job, as events: each goes to disk with a number, and then to those who follow the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from service.jobs.disk import STORAGE_ERRORS, Disk
from service.jobs.known import KnownJobs
from service.jobs.records import Job
from service.jobs.shown import event_of
from service.jobs.writing import ClaimLostError
from service.telemetry.logs import log_crash


class Publisher:
    """Publishes events of jobs. Belongs to the event loop."""

    def __init__(self, disk: Disk, known: KnownJobs) -> None:
        self._disk, self._known = disk, known

    async def events(self, job: Job, after: int, most: int) -> list[tuple[int, bytes]]:
        """Return at most ``most`` of the kept events of a job after this one, in order, with their numbers.

        The newest are in memory, one object for all who read them.
        """
        recent = list(job.recent)
        if recent and recent[0][0] <= after + 1:
            return [event for event in recent if event[0] > after][:most]
        if job.events <= after:
            return []
        kept = await self._disk.in_database(self._disk.store.kept.events, job.number, after, most)
        return [(sequence, event_bytes(sequence, data)) for sequence, data in kept]

    def publish(self, job: Job) -> None:
        """Bring what a job is now to disk as an event, and to those who follow it: behind what was written before."""
        event, fence = event_of(job), job.fence
        write: Callable[[], int]
        if job.status in ("paused", "running") and job.mine:
            write = partial(self._disk.store.set_paused, job.number, job.paused, event, fence=fence)
        else:
            write = partial(self._disk.store.add_event, job.number, event, fence=fence)
        job.publishing += 1
        loop = asyncio.get_running_loop()

        def written(future: Future[int]) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(published, future)

        def published(future: Future[int]) -> None:
            job.publishing -= 1
            error = None if future.cancelled() else future.exception()
            if error is None and not future.cancelled():
                self.happened(job, future.result(), event)
            else:
                # What it tells of is in memory, and the next event tells of it too.
                if error is not None and not isinstance(error, (*STORAGE_ERRORS, ClaimLostError)):
                    log_crash("an event of a job could not be kept", error)
                self._known.wake(job)

        try:
            self._disk.submit(write).add_done_callback(written)
        except RuntimeError:  # nothing is written any more
            job.publishing -= 1
            self._known.wake(job)
        self._known.count()

    def happened(self, job: Job, sequence: int, event: str) -> None:
        """Let those who follow a job have an event that is on disk."""
        if sequence > job.events:
            if job.recent and job.recent[-1][0] != sequence - 1:
                job.recent.clear()
            job.events = sequence
            job.recent.append((sequence, event_bytes(sequence, event)))
        self._known.wake(job)


def event_bytes(sequence: int, data: str) -> bytes:
    """Return an event as it is sent: its id is its number."""
    return f"id: {sequence}\ndata: {data}\n\n".encode()
