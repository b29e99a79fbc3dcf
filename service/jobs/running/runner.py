"""Runs the jobs in the background, chunk by chunk: callers take turns, and so do one caller's jobs.

Two chunks are under way at any time, of one job or of two: while the device is at one, the other is read, tokenised and
queued behind it. Chunks under way are on disk before they run. Those under way when a process ended uncleanly are
suspect: the next process tries those rows one by one, and drops a row that was alone at several such ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial

from service.artifacts.host import ArtifactHost
from service.jobs.reading.measuring import Measuring
from service.jobs.running.chunks import read_chunk
from service.jobs.running.ending import UploadGoneError
from service.jobs.running.run import Run
from service.jobs.running.tools import Tools
from service.jobs.running.waiting import Turns
from service.jobs.store.ledger import Ledger
from service.jobs.store.records import Job, ReadRow
from service.jobs.store.tasks import cancelled
from service.scoring.scorer import Scorer
from service.settings import Settings
from service.telemetry.logs import log_crash

#: Chunks under way: one on the device, and one ahead of it.
_CHUNKS = 2
#: A chunk is as many rows as make two device batches, so that few batches are not full.
_CHUNK_BATCHES = 2


class Runner:
    """Runs the jobs of a ledger. Belongs to the event loop."""

    def __init__(
        self, settings: Settings, scorer: Scorer, artifacts: ArtifactHost, read_uploaded: ReadRow, ledger: Ledger
    ) -> None:
        self._settings, self._scorer, self._ledger = settings, scorer, ledger
        self._woken = asyncio.Event()
        self._tools = Tools(
            settings,
            scorer,
            artifacts,
            read_uploaded,
            ledger,
            Measuring(ledger),
            look=self._woken.set,
            forget=self._forget,
            stop=self.stop,
        )
        self._runs: dict[str, Run] = {}
        self._callers, self._jobs = Turns(), Turns()
        self._begins: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Take up the jobs that wait, and look for whose turn it is."""
        if self._closing is not None:
            return
        if self._ledger.disk.closed is None:
            for job in self._ledger.jobs.values():
                if job.mine and not (job.finished or job.cancelling or job.id in self._runs):
                    self._runs[job.id] = Run(job, self._tools)
        self._callers.meet({run.job.owner for run in self._runs.values()})
        self._jobs.meet(self._runs)
        self._woken.set()
        if self._begins is None and self._runs:
            self._begins = asyncio.create_task(self._begin_chunks(), name="laplora-jobs")

    def _forget(self, job: Job) -> None:
        self._runs.pop(job.id, None)
        self.wake()

    def idle(self, count: int) -> list[Job]:
        """Return at most so many jobs, of those that this server can do without the ones that have come least far."""
        jobs = [run.job for run in self._runs.values() if not run.ends and run.job.shared_out]
        return sorted(jobs, key=lambda job: (job.rows_done, -job.number))[:count]

    async def drop(self, job: Job) -> None:
        """Stop one job, if it runs; return once nothing of it does."""
        run = self._runs.get(job.id)
        if run is not None:
            await run.stop()
            self._forget(job)

    async def give_up(self, job: Job) -> None:
        """Stop one job so that another server can have it; return once nothing of it runs."""
        run = self._runs.get(job.id)
        if run is not None:
            await run.stop()
            await run.requeue()
            job.mine = False
            self._forget(job)

    def stop(self) -> None:
        """Stop every job at its last whole chunk; what of them waits for the device is dropped."""
        if self._closing is None:
            for run in self._runs.values():
                run.stopped = True
            self._closing = asyncio.create_task(self._close(), name="laplora-jobs-close")

    async def wait_closed(self) -> None:
        """Return once nothing of :meth:`stop` is left to do."""
        if self._closing is not None:
            await self._closing

    async def _close(self) -> None:
        await cancelled([self._begins])
        runs = list(self._runs.values())
        await cancelled({task for run in runs for task in run.tasks})
        for run in runs:
            await run.requeue()

    async def _begin_chunks(self) -> None:
        while True:
            try:
                self._woken.clear()
                now = time.monotonic()
                run = self._next(now)
                if run is not None:
                    await self._begin_chunk(run)
                    continue
                # Those whose time has come wait for a chunk to end, which wakes this.
                waits = [run.not_before for run in self._runs.values() if run.has_more and run.not_before > now]
                wait_s = max(0.0, min(waits, default=math.inf) - time.monotonic())
                try:
                    async with asyncio.timeout(None if self._busy or math.isinf(wait_s) else wait_s):
                        await self._woken.wait()
                except TimeoutError:
                    continue
            except Exception as error:
                log_crash("jobs could not go on", error)
                await asyncio.sleep(1.0)

    @property
    def _busy(self) -> bool:
        under_way = [run for run in self._runs.values() if run.chunks]
        return sum(len(run.chunks) for run in under_way) >= _CHUNKS or any(run.under_way.suspect for run in under_way)

    def _next(self, now: float) -> Run | None:
        """Return the job whose turn it is to begin a chunk, None if none can."""
        ready: dict[str, dict[str, Run]] = {}
        if not self._busy:
            for job_id, run in self._runs.items():
                if run.has_more and run.not_before <= now and not (run.alone and run.chunks):
                    ready.setdefault(run.job.owner, {})[job_id] = run
        if not ready:
            return None
        caller = self._callers.next(ready)
        job_id = self._jobs.next(ready[caller])
        if ready[caller][job_id].under_way.suspect and any(run.chunks for run in self._runs.values()):
            return None
        self._callers.take(caller)
        self._jobs.take(job_id)
        return ready[caller][job_id]

    async def _begin_chunk(self, run: Run) -> None:
        job, ledger = run.job, self._ledger
        first, offset = run.next_row, run.next_offset
        rows = 1 if run.under_way.suspect else min(run.rows, self._batch_rows(job), job.about.rows - first)
        try:
            await ledger.disk.in_files(ledger.disk.folder.fetch, job.id, job.about.upload_bytes)
            read = partial(read_chunk, ledger.disk.folder.inputs(job.id), job.about, self._tools.read_uploaded)
            which = {"first": first, "offset": offset, "rows": rows, "most_bytes": self._settings.max_body_bytes}
            chunk = await ledger.disk.in_files(partial(read, **which, bad=run.dropped.codes))
            if job.id not in self._runs:
                await ledger.disk.forget_copy(job.id)  # it was taken away while its upload came
        except FileNotFoundError:
            await run.unreadable(
                UploadGoneError("the job's upload is gone from where the server keeps it: upload it again")
            )
            return
        except Exception as error:
            await run.unreadable(error)
            return
        # While it was read the job may have been cancelled, or a chunk before it failed.
        if run.has_more and (run.next_row, run.next_offset) == (first, offset):
            run.begin(chunk)

    def _batch_rows(self, job: Job) -> int:
        tokens_each = max(1.0, job.about.tokens / job.about.rows)
        return max(1, math.floor(_CHUNK_BATCHES * self._scorer.backend.batch_tokens / tokens_each))
