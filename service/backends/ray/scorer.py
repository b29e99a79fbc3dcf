"""A replica with a device: answers tickets by the queue and the device that a plain server has.

Rows of many requests and artifacts wait in its queue, which makes batches of them as in one process. Not by
``serve.batch``, which splits a batch of mixed artifacts and runs the parts at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from laplora.remote.address import is_address
from service.artifacts.predictors import Library
from service.backends.local import Local
from service.backends.ray.held import Held
from service.backends.ray.messages import Facts, Reply, Status
from service.errors import ArtifactChangedError, DeviceFaultError, DeviceStalledError, LoadTimeoutError
from service.exit_status import ExitStatus
from service.process import free_what_is_unused
from service.scoring.admission import Amount
from service.scoring.entry import Entry
from service.scoring.ticket import Ticket
from service.settings import Settings
from service.telemetry.batch_report import BatchReport

if TYPE_CHECKING:
    from laplora.fitting.loaded import Given
    from laplora.predictor import Predictor

_log = logging.getLogger("laplora.service")

#: Most batches that are kept between two statuses, for the ingress's metrics.
_MOST_BATCHES = 1000
#: How often artifacts on another base are looked for that are still in memory before a base is loaded.
_FREE_TRIES, _FREE_PAUSE_S = 10, 0.05

#: Seconds before a load that failed is tried again: twice as long each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0


class Scorer:
    """Answers tickets with the weights. Lives in one process, and its methods on one event loop.

    Args:
        settings: the server's; callers' shares are the ingress's matter.
        replica: its name.
    """

    def __init__(self, settings: Settings, library: Library, replica: str) -> None:
        self._replica, self._settings, self._library = replica, settings, library
        self._batches = _Batches()
        # Room for what one ingress sends to all replicas: it is the one that refuses.
        whole = {"client_share": 1.0, "max_queue_rows": 2**31, "max_queue_tokens": 2**40}
        self.local = Local(settings.model_copy(update=whole), library, on_batch=(self._batches.add,))
        self._held = Held(
            most=settings.max_artifacts,
            most_bytes=settings.max_artifact_bytes,
            most_load_s=settings.load_timeout_s,
            on_load=self._changed,
        )
        self._wanted, self._using = Wanted(), threading.Lock()
        self._known: WeakSet[Predictor] = WeakSet()  # all that were held and are in memory
        self.local.start()

    def load_first(self) -> None:
        """Load and verify what the settings name: a replica that is new answers at once.

        Raises:
            LaploraError: it cannot be served.
        """
        settings = self._settings

        def folder_of(name: str, named: Path) -> Path:
            return self._library.fetch(name, settings, lambda stage: None) if is_address(name) else named

        first = folder_of(settings.artifact, settings.artifact_path)
        others = [folder_of(name, settings.artifacts_root / name) for name in settings.also_load]
        folders = {self._library.read(folder).digest: folder for folder in (first, *others)}
        for digest, folder in folders.items():
            with self._held.lease(digest, partial(self._load, folder)):
                pass

    def check(self) -> None:
        """Look at the device; end the process where it has failed: whoever waits is answered by another replica."""
        self.local.look()
        if self.local.failed:
            logging.shutdown()
            os._exit(ExitStatus.DEVICE_FAULT)

    def status(self, wanted: Mapping[str, str], by: str = "", batches_to: int = 0) -> Status:
        """Return how it is, and see to it that what an ingress wants, folders by digest, is loaded.

        Args:
            by: which ingress asks; batches_to: number of the last batch that it was told of.
        """
        if self._held.keep(wanted, by=by):
            asyncio.get_running_loop().run_in_executor(None, self._changed)
        for digest, folder in wanted.items():
            if digest not in self._held.digests and self._held.has_room and self._wanted.begin(digest):
                asyncio.get_running_loop().run_in_executor(None, self._load_wanted, digest, Path(folder))
        backlog = self.local.backlog
        batches, last = self._batches.since(batches_to)
        return Status(
            self._replica,
            self._held.digests,
            backlog.rows,
            backlog.tokens,
            backlog.oldest_wait_s,
            self.local.batch_tokens,
            batches,
            last,
            self._stalled,
        )

    @property
    def _stalled(self) -> bool:
        try:
            self.local.require_responsive()
        except (DeviceFaultError, DeviceStalledError):
            return True
        return False

    async def load(self, digest: str, folder: str, together: bool = False) -> Reply:
        """Return the facts of an artifact, loaded and verified now if it is not.

        Args:
            together: artifacts on another base model stay in memory; else they go before it is loaded.
        """

        def facts() -> Facts:
            with self._held.lease(digest, lambda: self._checked(digest, Path(folder), together)) as predictor:
                how = predictor.reverse_pass
                how = how and replace(how, form=None)  # of modules, which do not travel
                return Facts(digest, predictor.own_bytes, predictor.weights, how, self.local.budget_of(predictor))

        return await self._replied(lambda: asyncio.to_thread(facts))

    async def predict(self, ticket: Ticket, folder: str) -> Reply:
        """Return a ticket's predictions; cancelling this takes its rows out of the queue."""
        entry = Entry(ticket.caller, time.monotonic() + ticket.left_s)

        async def answer() -> Any:
            async with _leased(self._held, ticket.digest, lambda: self._checked(ticket.digest, Path(folder))):
                self.local.enter(entry, Amount(len(ticket.rows), ticket.tokens), fewest_tokens=ticket.tokens)
                try:
                    return await self.local.submit(entry, ticket)
                finally:
                    entry.future.cancel()

        return await self._replied(answer, entry)

    async def make_version(self, digest: str, folder: str, given: Given) -> Reply:
        """Return the version that learned from labelled rows: see ``Backend.make_version``; cancelling this ends it."""
        given_up = threading.Event()

        def go_on() -> None:
            if given_up.is_set():
                raise LoadTimeoutError("the version was given up")

        def version() -> Any:
            with self._held.lease(digest, lambda: self._checked(digest, Path(folder))) as predictor:
                return self.local.make_version(predictor, given, go_on=go_on)

        try:
            return await self._replied(lambda: asyncio.to_thread(version))
        finally:
            given_up.set()

    async def _replied(self, answer: Callable[[], Awaitable[Any]], entry: Entry | None = None) -> Reply:
        try:
            value = await answer()
        except Exception as error:
            # Whole, and of its class: whoever sent the ticket answers with it. The frames stay here.
            return Reply(self._replica, error=error.with_traceback(None))
        times = (None, None) if entry is None else (entry.started_at, entry.finished_at)
        compute_s = 0.0 if times[0] is None or times[1] is None else times[1] - times[0]
        return Reply(self._replica, value, compute_s=compute_s, digests=self._held.digests)

    def _load_wanted(self, digest: str, folder: Path) -> None:
        loaded = False
        try:
            with self._held.lease(digest, lambda: self._checked(digest, folder, spare=True), spare_wanted=True):
                loaded = True
        except Exception as error:
            # The ingress asks again with each status.
            _log.warning("a wanted artifact is not loaded: %s", type(error).__name__, extra={"event": "load_failed"})
        finally:
            self._wanted.end(digest, loaded=loaded)

    def _checked(self, digest: str, folder: Path, together: bool = False, *, spare: bool = False) -> Predictor:
        """Return the predictor of a folder that has the content of a digest; what is on other bases goes for it first.

        Args:
            together: it does not; spare: what is wanted does not, and it is refused.
        """
        artifact = self._library.read(folder)
        if artifact.digest != digest:
            raise ArtifactChangedError(
                f"{folder.name!r} is {artifact.digest} on this replica's disk, and {digest} was asked for"
            )
        if not together and not self._held.leave_other_bases(artifact.manifest.base, spare_wanted=spare):
            self._free_other_bases(artifact.manifest.base)
        return self._load(folder)

    def _load(self, folder: Path) -> Predictor:
        predictor = self.local.load(folder, lambda phase, stage: None)
        with self._using:
            self.local.use(predictor, [*self._held.predictors, predictor])
        return predictor

    def _changed(self) -> None:
        """Free what went, and let batches be as large as those allow that are left."""
        free_what_is_unused()
        with self._using:
            if left := self._held.predictors:
                self._known.update(left)
                self.local.use(left[-1], left)

    def _free_other_bases(self, base: object) -> None:
        """Free what is not on a base model; what a request that was just answered still has goes a moment later."""
        for _ in range(_FREE_TRIES):
            free_what_is_unused()
            with self._using:
                if all(one.artifact.manifest.base == base for one in self._known):
                    return
            time.sleep(_FREE_PAUSE_S)


class _Batches:
    """The last batches, by number, so that whoever missed an answer is told again. Safe to use from several threads."""

    def __init__(self) -> None:
        self._last, self._kept = 0, deque[BatchReport](maxlen=_MOST_BATCHES)
        self._lock = threading.Lock()

    def add(self, report: BatchReport) -> None:
        with self._lock:
            self._last += 1
            self._kept.append(report)

    def since(self, number: int) -> tuple[tuple[BatchReport, ...], int]:
        """Return the batches after that of a number, and the number of the last one; those before are known."""
        with self._lock:
            while self._kept and self._last - len(self._kept) < number:
                self._kept.popleft()
            return tuple(self._kept), self._last


class _leased:
    """``Held.lease`` for an event loop: a load happens in a thread."""

    def __init__(self, held: Held, digest: str, load: Callable[[], Predictor]) -> None:
        self._held, self._digest, self._load = held, digest, load

    async def __aenter__(self) -> Predictor:
        there = self._held.lease_if_there(self._digest)
        self._lease = there or self._held.lease(self._digest, self._load)
        if there is not None:
            return there.__enter__()
        return await asyncio.to_thread(self._lease.__enter__)

    async def __aexit__(self, *raised: Any) -> None:
        self._lease.__exit__(None, None, None)


class Wanted:
    """The loads of wanted artifacts, by digest, one at a time. Safe to use from several threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._running = False
        self._failed: dict[str, tuple[float, float]] = {}  # its last pause, and when that ends

    def begin(self, digest: str) -> bool:
        """Return whether a load is to begin now; it then runs until ``end``, and no other begins."""
        with self._lock:
            _, until = self._failed.get(digest, (0.0, 0.0))
            if self._running or self._clock() < until:
                return False
            self._running = True
            return True

    def end(self, digest: str, *, loaded: bool) -> None:
        with self._lock:
            now = self._clock()
            self._running = False
            pause_s, _ = self._failed.pop(digest, (0.0, 0.0))
            # Failures without a request since then are forgotten.
            self._failed = {one: failure for one, failure in self._failed.items() if now - failure[1] < LONGEST_PAUSE_S}
            if not loaded:
                pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * pause_s))
                self._failed[digest] = (pause_s, now + pause_s)
