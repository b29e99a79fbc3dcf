"""How many unfinished jobs, and how many bytes of their uploads, there may be: in all, and of one caller.

What an upload announces has to fit when it begins. It holds what has come of it, so that announcing alone takes no room
from others. Its job holds the place until it has ended, when its upload leaves the disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.errors import BodyTooLargeError, TooManyJobsError
from service.settings import Settings


@dataclass(eq=False)
class Hold:
    """The place of one upload, or of the job that it became; only its :class:`Quota` changes it."""

    owner: str
    size_bytes: int


class Quota:
    """The limits and who holds what of them. Belongs to the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._max_jobs, self._max_jobs_per_caller = settings.max_jobs, settings.max_jobs_per_caller
        self._max_bytes = settings.jobs_bytes
        self._share_bytes = max(1, math.floor(settings.jobs_bytes * settings.client_share))
        self._max_upload_bytes = settings.max_job_bytes
        self._holds: set[Hold] = set()

    @property
    def held_bytes(self) -> int:
        """Bytes that everybody together holds."""
        return sum(hold.size_bytes for hold in self._holds)

    @property
    def largest_upload_bytes(self) -> int:
        """Most bytes of one upload: more could never be taken."""
        return min(self._max_upload_bytes, self._share_bytes)

    def check_size(self, size_bytes: int) -> None:
        """Check an upload's size against what one may ever have.

        Raises:
            BodyTooLargeError: it is larger.
        """
        limit, name = self.largest_upload_bytes, "max_job_bytes"
        if limit < self._max_upload_bytes:
            name = "one caller's share of max_jobs_bytes"
        if size_bytes > limit:
            raise BodyTooLargeError(
                f"the upload has at least {size_bytes} bytes, {name} is {limit}: send it in parts",
                limit=limit,
                got=size_bytes,
            )

    def check_room(self, owner: str, announced_bytes: int) -> None:
        """Check that there is room for another upload.

        Raises:
            TooManyJobsError: there is none now.
        """
        owners_jobs = sum(hold.owner == owner for hold in self._holds)
        for what, limit_name, limit, got in (
            ("unfinished jobs", "max_jobs", self._max_jobs, len(self._holds)),
            ("of them yours", "max_jobs_per_caller", self._max_jobs_per_caller, owners_jobs),
        ):
            if got >= limit:
                raise TooManyJobsError(
                    f"there are {got} {what}, {limit_name} is {limit}: wait for one to end, or cancel one",
                    limit=limit,
                    got=got + 1,
                )
        self._check_bytes(owner, announced_bytes)

    def hold(self, owner: str, size_bytes: int) -> Hold:
        """Return the place of an upload, or of a job that the disk had; unchecked."""
        hold = Hold(owner, size_bytes)
        self._holds.add(hold)
        return hold

    def grow(self, hold: Hold, size_bytes: int) -> None:
        """Let an upload hold this many bytes, if it holds fewer.

        Raises:
            BodyTooLargeError: more than one may ever have.
            TooManyJobsError: no room for them now.
        """
        self.check_size(size_bytes)
        if size_bytes > hold.size_bytes:
            self._check_bytes(hold.owner, size_bytes - hold.size_bytes)
            hold.size_bytes = size_bytes

    def release(self, hold: Hold | None) -> None:
        """Give a place back; again, or none, nothing."""
        if hold is not None:
            self._holds.discard(hold)

    def _check_bytes(self, owner: str, more: int) -> None:
        owners_bytes = sum(hold.size_bytes for hold in self._holds if hold.owner == owner)
        share = "one caller may hold {limit} (max_jobs_bytes times client_share)"
        for whose, held, limit, name in (
            ("your uploads hold", owners_bytes, self._share_bytes, share),
            ("the uploads of unfinished jobs hold", self.held_bytes, self._max_bytes, "max_jobs_bytes is {limit}"),
        ):
            if held + more > limit:
                raise TooManyJobsError(
                    f"{whose} {held} bytes and {more} came, {name.format(limit=limit)}: wait for a job to end, or "
                    "cancel one",
                    limit=limit,
                    got=held + more,
                )
