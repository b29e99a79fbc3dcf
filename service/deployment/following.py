"""A server's part in what its deployment serves: it begins with it, tells its own changes, and follows others'.

Belongs to the event loop. Without the database a server serves what it has, and tells and follows later.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from contextlib import suppress

from laplora.errors import LaploraError
from service.artifacts.host import ArtifactHost
from service.deployment import served
from service.deployment.served import Served
from service.errors import ActivationRunningError, kind_of
from service.jobs.store.disk import STORAGE_ERRORS, Disk
from service.jobs.store.tasks import cancelled
from service.settings import Settings
from service.shadow.candidate import Candidate
from service.shadow.terms import Terms
from service.telemetry.logs import log_crash, logger
from service.threads import in_daemon_thread

#: Seconds until an artifact is tried again that other servers serve and this one cannot.
_AGAIN_S = 60.0
#: Seconds between two looks at whether the start is over.
_START_LOOK_S = 0.05


class Following:
    """Holds a server to what its deployment serves.

    Args:
        disk: of the jobs, whose database is asked every ``job_look_s`` if servers share it.
    """

    def __init__(self, settings: Settings, disk: Disk, host: ArtifactHost, candidate: Candidate) -> None:
        self._settings, self._disk, self._host, self._candidate = settings, disk, host, candidate
        self._configured = json.dumps([settings.artifact, *settings.also_load, str(settings.artifacts_root)])
        #: The state served here as far as it was told or followed, and the one that the start came to.
        self._mine: Served | None = None
        self._began: Served | None = None
        #: The version that is served here; the one of which an artifact failed, and when that is tried again.
        self._version, self._failed, self._again = 0, 0, -math.inf
        self._changing = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    async def first(self) -> list[str]:
        """Return the names to begin with, the active one first; none where the settings say."""
        with suppress(*STORAGE_ERRORS):
            version, kept = await self._disk.ask(served.find, self._settings.deployment)
            if kept is not None and kept.configured == self._configured:
                self._version, self._mine = version, kept
                self._candidate.begin(kept.shadow)
                return [kept.active, *(name for name in kept.loaded if name != kept.active)]
        return []

    def start(self) -> None:
        """Tell and follow from now on."""
        self._keeper = asyncio.create_task(self._keep_up(), name="laplora-following")

    async def close(self) -> None:
        """Follow no more."""
        await cancelled([self._keeper])

    async def tell(self) -> None:
        """Tell what was changed here; later, if the database does not answer."""
        async with self._changing:
            with suppress(LaploraError):
                await (self._look() if self._mine is None else self._tell())

    async def _keep_up(self) -> None:
        while self._host.active is None:
            await asyncio.sleep(_START_LOOK_S)
        async with self._changing:
            self._began = self._now()
            if not self._host.began_whole:  # that is no change of this server's making, and it is tried again
                self._mine, self._failed, self._version = self._now(), self._version, 0
                self._again = time.monotonic() + _AGAIN_S
        while True:
            try:
                async with self._changing:
                    await self._look()
            except LaploraError:
                pass  # the database does not answer, or a change is under way: next time
            except Exception as error:
                log_crash("what other servers serve could not be followed", error)
            await asyncio.sleep(self._disk.look_s)

    async def _look(self) -> None:
        if self._mine is not None:
            await self._tell()
            if not self._disk.shared and self._version:
                return
        version, kept = await self._disk.ask(served.find, self._settings.deployment)
        if self._mine is None:  # the database had nothing of this deployment at the start, or did not answer
            self._mine = self._began or self._now()
            if kept is None or kept.configured != self._configured:
                _, self._version = await self._disk.ask(
                    served.tell, self._settings.deployment, None, now := self._now()
                )
                self._mine = now
                return
            await self._tell()
            version, kept = await self._disk.ask(served.find, self._settings.deployment)
        if kept is None or kept.configured != self._configured or version == self._version:
            return
        if version != self._failed or time.monotonic() >= self._again:
            self._host.require_taking()
            mine, whole = await asyncio.wrap_future(in_daemon_thread("laplora-follow", lambda: self._follow(kept)))
            self._candidate.begin(kept.shadow)
            self._mine = mine.model_copy(update={"shadow": self._shadow()})
            self._version = version if whole else 0
            if not whole:
                self._failed, self._again = version, time.monotonic() + _AGAIN_S

    async def _tell(self) -> None:
        now = self._now()
        if self._mine is None or now == self._mine:
            return
        before, after = await self._disk.ask(served.tell, self._settings.deployment, self._mine, now)
        self._mine = now
        if before == self._version:  # else another server's change is still to be followed
            self._version = after

    def _follow(self, kept: Served) -> tuple[Served, bool]:
        """Serve what others do; return what of it is served here, and whether that is all. Not for the event loop."""
        mine, whole = self._now(), True

        def serve(name: str) -> bool:
            try:
                change = self._host.change(name, name == kept.active, lambda: None)
            except ActivationRunningError:
                raise
            except LaploraError as error:
                fields = {"event": "follow_failed", "artifact": name, "code": kind_of(error).code}
                logger.error("other servers serve an artifact that this one cannot: %s", error, extra=fields)
                return False
            return kept.loaded[name] in ("", change.model.artifact.digest)

        if not serve(kept.active):
            return self._now(), False
        for name in mine.loaded.keys() - kept.loaded.keys():
            with suppress(LaploraError):  # gone already
                self._host.unload(name)
        for name in kept.loaded:
            whole &= name == kept.active or serve(name)
        return self._now(), whole  # what had no room here any more is no change of this server's making

    def _now(self) -> Served:
        places = [place.model.artifact for place in self._host.shelf.places]
        digests = {artifact.path.name: artifact.digest for artifact in places}
        return Served(configured=self._configured, active=places[0].path.name, loaded=digests, shadow=self._shadow())

    def _shadow(self) -> Terms | None:
        terms = self._candidate.terms
        return None if terms is None or terms.artifact == self._host.shelf.places[0].model.artifact.path.name else terms
