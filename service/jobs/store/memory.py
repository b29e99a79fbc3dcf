"""The jobs in the server's memory, and who of them holds which place."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import fields

from service.jobs.store.disk import Disk
from service.jobs.store.quota import Quota
from service.jobs.store.records import STATUSES, Job
from service.settings import Settings
from service.telemetry.metrics import Metrics

#: The fields that only the server with the job in memory knows.
_OF_MEMORY = frozenset({"mine", "beyond_share", "lost", "pace", "cancelling"})
#: The fields of a job that the database may change.
_STORED = [field.name for field in fields(Job) if field.name not in _OF_MEMORY]


class JobMemory:
    """Every job that the server knows of.

    Attributes:
        by_id: in the order of their uploads.
        quota: what unfinished ones and uploads hold.
    """

    def __init__(self, settings: Settings, metrics: Metrics, disk: Disk) -> None:
        self._metrics, self._disk = metrics, disk
        self.by_id: dict[str, Job] = {}
        self.quota = Quota(settings)

    def take_all(self, jobs: list[Job]) -> None:
        """Let these be the jobs, as the database has them."""
        self.by_id = {job.id: job for job in jobs}
        for job in jobs:
            self._place(job)
        self.count()

    def take_in(self, read: Job) -> Job:
        """Let memory say of a job what the database says; return the job of this id that everybody holds."""
        job = self.by_id.get(read.id)
        if job is None:
            newest = next(reversed(self.by_id.values()), read)
            job = self.by_id[read.id] = read
            if read.number < newest.number:
                self.by_id = dict(sorted(self.by_id.items(), key=lambda item: item[1].number))
        else:
            for name in _STORED:
                setattr(job, name, getattr(read, name))
            job.mine = job.beyond_share = job.lost = False
        self._place(job)
        self.count()
        return job

    def _place(self, job: Job) -> None:
        """Give a job that was read its place in the quota, and the status that the database has no word for."""
        if job.finished:
            self.quota.release(job.id)
            return
        self.hold(job)
        if job.left_at is not None:
            job.status = "paused"
        elif job.server not in (None, self._disk.server):
            job.status = "paused" if job.paused else ("running" if job.started_at else "queued")
            job.pace.append((time.monotonic(), job.rows_done))

    def hold(self, job: Job) -> None:
        """Let an unfinished job hold what its upload and its answers take."""
        self.quota.hold(job.id, job.owner, job.disk_bytes)

    def forget(self, job: Job) -> None:
        """Let go of a job that is gone."""
        self.by_id.pop(job.id, None)
        self.quota.release(job.id)
        if not job.finished:
            job.status = "cancelled"
        self.count()

    def count(self) -> None:
        """Tell the metrics how many jobs there are of each status, and whether other servers count the same ones."""
        counts = Counter(job.status for job in self.by_id.values())
        for status in STATUSES:
            self._metrics.set_jobs(status, counts[status], shared=self._disk.shared)
