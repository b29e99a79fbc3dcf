"""The jobs in the server's memory, and who of them holds which place."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import fields

from service.errors import BodyTooLargeError, TooManyJobsError
from service.jobs.store.disk import Disk
from service.jobs.store.records import STATUSES, Job
from service.settings import Settings
from service.telemetry.metrics import Metrics

#: The fields that only the server with the job in memory knows.
_OF_MEMORY = frozenset({"mine", "beyond_share", "lost", "pace", "cancelling"})
#: The fields of a job that the database may change.
_STORED = [field.name for field in fields(Job) if field.name not in _OF_MEMORY]


class Quota:
    """Limits of unfinished jobs and their bytes, in all and of one caller, and who holds what of them.

    An upload's announced size has to fit when it begins. It holds what has come of it and its answers take at most, so
    that announcing alone takes no room from others; its job does until it has ended. Belongs to the event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._share_bytes = max(1, math.floor(settings.jobs_bytes * settings.client_share))
        #: By job: its owner, and the bytes that it holds.
        self._held: dict[str, tuple[str, int]] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes that everybody together holds."""
        return sum(size for _, size in self._held.values())

    def check_size(self, size_bytes: int, answer_bytes: int = 0) -> None:
        """Raise BodyTooLargeError for more bytes than one upload, and with its answers one job, may ever have."""
        share, answers = "one caller's share of max_jobs_bytes", f", and its answers would take {answer_bytes}"
        for got, limit, what in (
            (size_bytes, self._settings.max_job_bytes, ", max_job_bytes"),
            (size_bytes + answer_bytes, self._share_bytes, f"{answers if answer_bytes else ''}, {share}"),
        ):
            if got > limit:
                raise BodyTooLargeError(
                    f"the upload has at least {size_bytes} bytes{what} is {limit}: send it in parts",
                    limit=limit,
                    got=got,
                )

    def check_room(self, owner: str, announced_bytes: int) -> None:
        """Raise TooManyJobsError where there is no room for another upload now."""
        owners_jobs = sum(holder == owner for holder, _ in self._held.values())
        for what, name, got in (
            ("unfinished jobs", "max_jobs", len(self._held)),
            ("unfinished jobs of yours", "max_jobs_per_caller", owners_jobs),
        ):
            limit = getattr(self._settings, name)
            if got >= limit:
                raise TooManyJobsError(
                    f"there are {got} {what}, {name} is {limit}: wait for one to end, or cancel one",
                    limit=limit,
                    got=got + 1,
                )
        self._check_bytes(owner, announced_bytes)

    def hold(self, job_id: str, owner: str, size_bytes: int) -> None:
        """Take a place, unchecked: of an upload that begins, or of a job that the disk had."""
        self._held[job_id] = (owner, size_bytes)

    def grow(self, job_id: str, size_bytes: int, answer_bytes: int) -> None:
        """Let an upload and its answers hold this many bytes, no fewer than it holds; errors as of the checks."""
        self.check_size(size_bytes, answer_bytes)
        owner, held_bytes = self._held[job_id]
        self._check_bytes(owner, size_bytes + answer_bytes - held_bytes)
        self.hold(job_id, owner, size_bytes + answer_bytes)

    def release(self, job_id: str) -> None:
        """Give a place back; a second call does nothing."""
        self._held.pop(job_id, None)

    def _check_bytes(self, owner: str, more: int) -> None:
        owners_bytes = sum(size for holder, size in self._held.values() if holder == owner)
        share = "one caller may hold {limit} (max_jobs_bytes times client_share)"
        for whose, held, limit, name in (
            ("your unfinished jobs hold", owners_bytes, self._share_bytes, share),
            (
                "all unfinished jobs hold",
                self.held_bytes,
                self._settings.jobs_bytes,
                "max_jobs_bytes is {limit}",
            ),
        ):
            if held + more > limit:
                raise TooManyJobsError(
                    f"{whose} {held} bytes and {more} came, {name.format(limit=limit)}: wait for a job to end, or "
                    "cancel one",
                    limit=limit,
                    got=held + more,
                )


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
