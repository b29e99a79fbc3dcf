"""How many unfinished jobs, and how many bytes of their uploads and answers, there may be: in all, and of one caller.

An upload's announced size has to fit when it begins. It holds what has come of it, and what the answers to that take at
most, so that announcing alone takes no room from others. Its job holds the place until it has ended.
"""

from __future__ import annotations

import math

from service.errors import BodyTooLargeError, TooManyJobsError
from service.settings import Settings


class Quota:
    """The limits and who holds what of them. Belongs to the event loop."""

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
