"""The backend of the ingress: admits requests, and sends each ticket to the replica that answers it soonest.

That is one that has the artifact loaded and is to have it, and of those the one with the fewest tokens that wait.
Predictions have no side effect, so a ticket whose replica is gone goes to another one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakSet

from service.artifacts.predictors import Library
from service.artifacts.token_budget import CPU_BATCH_TOKENS
from service.backends.ray.held import InUseError
from service.backends.ray.messages import Facts, Reply, Status
from service.backends.ray.placement import Placement, Places
from service.backends.ray.remote_model import RemoteModel
from service.errors import (
    ArtifactNotLoadedError,
    DeviceFaultError,
    DeviceStalledError,
    DrainingError,
    NotReadyError,
    ShelfFullError,
)
from service.scoring.admission import Admission, Amount
from service.scoring.backend import Backlog, Enter
from service.scoring.entry import Entry
from service.scoring.model import Model, TokenBudget
from service.scoring.ticket import Ticket
from service.settings import Settings
from service.telemetry.batch_report import BatchReport
from service.threads import settle

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.fitting.loaded import Given, Version

_log = logging.getLogger("laplora.service")

#: Replicas that one ticket is sent to, where the first are gone or have lost their device. One of its rows may be why:
#: it shall not take down more than two.
TRIES = 2
#: Tries where a replica only says that it stops: no row is why.
LEAVING_TRIES = 10
#: Seconds between two looks at all replicas, and after which one that has not answered is not counted on.
LOOK_S, SILENT_S = 0.5, 10.0
#: Seconds that a ticket waits for a first replica.
WAIT_S = 30.0


class ReplicaGoneError(Exception):
    """A call was not answered, because its replica is gone or cannot be reached."""


class Calls(Protocol):
    """How replicas are called. ``service.ray_serve`` has Ray Serve's."""

    def present(self) -> frozenset[str]:
        """Return the names of the replicas that there are."""

    async def call(self, replica: str, method: str, *arguments: Any) -> Any:
        """Return what a method of a replica returns; an empty name is any. Cancelling this cancels the call.

        Raises:
            ReplicaGoneError: it is gone, or cannot be reached.
        """


@dataclass
class _Replica:
    """The state of a replica: its last status, when that was asked for and came, the tokens of tickets sent and not
    answered, how many tickets were ever sent, and the number of the last batch that was counted.

    It is known ``since`` a time. ``given_up`` is set while it is silent and another one answers: its tickets go there.
    """

    status: Status | None = None
    asked: float = 0.0
    seen: float = 0.0
    sent_tokens: int = 0
    sent: int = 0
    batches_to: int = 0
    since: float = field(default_factory=time.monotonic)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def silent(self) -> bool:
        """Whether it has not answered lately."""
        return time.monotonic() - max(self.seen, self.since) >= SILENT_S

    @property
    def stalled(self) -> bool:
        """Whether it has said that its device does not answer."""
        return self.status is not None and self.status.stalled


@dataclass
class _Trial:
    """How often a ticket was tried, and where."""

    tried: set[str] = field(default_factory=set)
    lost: int = 0
    leaving: int = 0


class Replicas:
    """A ``service.scoring.backend.Backend`` whose devices are replicas elsewhere. Belongs to the event loop.

    It alone knows what each caller holds: there is one ingress.

    Args:
        on_batch: each is called with each batch that a replica ran.
    """

    def __init__(
        self,
        settings: Settings,
        library: Library,
        calls: Calls,
        *,
        on_batch: Sequence[Callable[[BatchReport], None]] = (),
    ) -> None:
        self._settings, self._library, self._calls, self._on_batch = settings, library, calls, on_batch
        self._admission = Admission(
            Amount(*settings.queue_limits(CPU_BATCH_TOKENS)), client_share=settings.client_share
        )
        self._lock = threading.RLock()  # of what is admitted: futures may be settled in any thread
        self._entries: set[Entry] = set()
        self._replicas: dict[str, _Replica] = {}
        self._models: WeakSet[RemoteModel] = WeakSet()
        self._bases: dict[object, object] = {}
        self._places = Places()
        self._name = uuid.uuid4().hex
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def batch_tokens(self) -> int:
        """Most padded tokens of a batch: the smallest of the replicas'."""
        return min((s.batch_tokens for s in self.statuses), default=CPU_BATCH_TOKENS)

    @property
    def statuses(self) -> list[Status]:
        return [one.status for one in list(self._replicas.values()) if one.status is not None]

    @property
    def backlog(self) -> Backlog:
        """The work that waits at all replicas, by their last status."""
        statuses = self.statuses
        return Backlog(
            sum(one.rows for one in statuses),
            sum(one.tokens for one in statuses),
            max((one.oldest_wait_s for one in statuses), default=0.0),
            self._admission.total,
            self._admission.limits,
        )

    @property
    def requests(self) -> int:
        return len(self._entries)

    @property
    def failed(self) -> bool:
        """Never: a replica that fails is replaced by Ray Serve."""
        return False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._looking = self._loop.create_task(self._look_forever())

    def look(self) -> None:
        """Nothing: replicas look at their own devices."""

    def drain(self) -> None:
        self._draining = True

    def stop(self, *, join_timeout_s: float = 0.0) -> None:
        self._draining = True
        for entry in list(self._entries):
            settle(entry.future, error=DrainingError("the server stopped before this request was answered"))
        if self._looking is not None:
            self._looking.cancel()

    def require_open(self) -> None:
        """Return if new work is taken; DrainingError where the ingress is stopping."""
        if self._draining:
            raise DrainingError("the server is stopping and takes no new requests")

    def require_responsive(self) -> None:
        """Return if there is a replica that has answered lately and whose device does; DeviceStalledError: none is."""
        if not self._live(self._calls.present()):
            raise DeviceStalledError(f"no replica has answered for {SILENT_S:g} seconds, or no device of one does")

    def check_room(self, caller: str) -> None:
        with self._lock:
            self._admission.check_room(caller, now=time.monotonic())

    def enter(self, entry: Entry, expected: Amount, *, fewest_tokens: int) -> None:
        self.require_open()
        with self._lock:
            now = time.monotonic()
            entry.reservation = self._admission.reserve(entry.caller, expected, now=now, fewest_tokens=fewest_tokens)
            self._entries.add(entry)
            entry.entered_at = now
        entry.future.add_done_callback(lambda _: self._leave(entry))

    def _leave(self, entry: Entry) -> None:
        with self._lock:
            self._entries.discard(entry)
            if entry.reservation is not None:
                self._admission.close(entry.reservation)

    async def submit(self, entry: Entry, ticket: Ticket) -> list[Prediction]:
        model = self._model(ticket.digest)
        if entry.reservation is not None:
            with self._lock:
                known = Amount(len(ticket.rows), ticket.tokens)
                self._admission.correct(entry.reservation, known, now=time.monotonic())
        entry.ticket, entry.queued_at = ticket, time.monotonic()
        sending = asyncio.ensure_future(self._answered("predict", ticket, model))

        def answered(task: asyncio.Task[Reply]) -> None:
            if task.cancelled():
                entry.future.cancel()
            elif (error := task.exception()) is not None:
                settle(entry.future, error=error)
            else:
                reply = task.result()
                entry.finished_at = time.monotonic()
                entry.started_at = max(entry.queued_at or 0.0, entry.finished_at - reply.compute_s)
                self._learn(ticket, reply)
                settle(entry.future, result=reply.predictions)

        sending.add_done_callback(answered)
        try:
            return await asyncio.wrap_future(entry.future)
        finally:
            sending.cancel()

    def load(self, folder: Path, enter: Enter) -> RemoteModel:
        """Return the artifact in a folder, once every replica that is to hold it has loaded it. Not for the event loop.

        A scorer is there once it has loaded its model, which may take minutes: only ``enter`` ends the wait for one.

        Raises:
            LaploraError: it cannot be served.
            ShelfFullError: for ``request_timeout_s`` what is in use left it no room.
            DeviceFaultError: the replicas that were to load it were lost.
        """
        enter("loading", "reading the artifact")
        encoder = self._library.encoder(folder, self._settings, lambda stage: enter("loading", stage))
        base = encoder.artifact.manifest.base

        async def loaded() -> RemoteModel:
            facts = await self._loaded(encoder.artifact.digest, repr(base), folder)
            model = RemoteModel(encoder, facts, self._bases.setdefault(repr(base), base))
            self._models.add(model)  # on the event loop, which goes through them
            return model

        def go_on() -> None:
            enter("loading", "loading on the replicas" if self._calls.present() else "waiting for a scorer")

        return cast(RemoteModel, self._waited(loaded(), go_on))

    def budget_of(self, model: Model) -> TokenBudget:
        """Return how large an artifact's batches may be on the replica that said it first."""
        return cast(RemoteModel, model).budget

    def use(self, model: Model, loaded: Sequence[Model]) -> None:
        """Take in which base answers: artifacts on another one lose their places."""
        self._places.answers(cast(RemoteModel, model).base_name)

    def make_version(self, model: Model, given: Given, *, go_on: Callable[[], None]) -> Version:
        """Return the version that learned from labelled rows, made on one replica. Not for the event loop."""
        artifact = model.artifact

        async def made() -> Version:
            replica = await self._choose(artifact.digest, set())
            arguments = (artifact.digest, str(artifact.path), given)
            reply: Reply = await self._calls.call(replica, "make_version", *arguments)
            if reply.error is not None:
                raise reply.error
            return cast("Version", reply.value)

        try:
            return cast("Version", self._waited(made(), go_on))
        except ReplicaGoneError:
            raise DeviceFaultError("the replica that learned from the labels is gone: try again") from None

    def _live(self, present: frozenset[str]) -> list[str]:
        """Return those of the replicas that have answered lately, and whose devices do."""
        known = self._replicas.copy()  # whole: a scrape asks in a thread of its own
        return [
            name
            for name in present & known.keys()
            if known[name].seen > 0 and not (known[name].stalled or known[name].silent)
        ]

    def _model(self, digest: str) -> RemoteModel:
        for model in self._models:
            if model.artifact.digest == digest:
                return model
        raise ArtifactNotLoadedError(f"no artifact of the digest {digest} is loaded")

    def _waited(self, work: Any, go_on: Callable[[], None]) -> Any:
        """Return a coroutine's result, in a thread that is not the event loop's; ``go_on`` ends the wait."""
        if self._loop is None:
            raise NotReadyError("the server has not started")
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                go_on()
                try:
                    return future.result(LOOK_S)
                except TimeoutError:
                    if future.done():
                        return future.result()
        finally:
            future.cancel()

    async def _answered(self, method: str, ticket: Ticket, model: RemoteModel) -> Reply:
        """Return a replica's reply to a ticket; a replica that is gone is replaced by another one."""
        trial, deadline = _Trial(), time.monotonic() + ticket.left_s
        while True:
            name = await self._choose(ticket.digest, trial.tried)
            known = self._replicas.setdefault(name, _Replica())
            known.sent_tokens += ticket.tokens
            known.sent += 1
            try:
                sent = replace(ticket, left_s=deadline - time.monotonic())
                reply = await self._called(known, name, method, sent, str(model.artifact.path))
            except ReplicaGoneError:
                reply = Reply(name, error=DeviceFaultError("the replica is gone, and no other has answered: try again"))
            finally:
                known.sent_tokens -= ticket.tokens
            error = reply.error
            if error is None:
                self._note_held(reply)
                return reply
            if isinstance(error, InUseError) and (left_s := deadline - time.monotonic()) > 0:
                # All that it holds is in use: an artifact goes once its requests are answered.
                await asyncio.sleep(min(LOOK_S, left_s))
                continue
            trial.tried.update((name, reply.replica))
            if isinstance(error, DeviceFaultError):
                trial.lost += 1
            elif isinstance(error, DrainingError):
                trial.leaving += 1
            else:
                raise error
            if trial.lost >= TRIES or trial.leaving >= LEAVING_TRIES:
                raise error
            _log.warning("a ticket goes to another replica", extra={"event": "ticket_retried", "replica": name})

    async def _called(self, known: _Replica, name: str, *call: Any) -> Reply:
        """Return a replica's reply; ReplicaGoneError also once it is given up."""
        calling = asyncio.ensure_future(self._calls.call(name, *call))
        given_up = asyncio.ensure_future(known.given_up.wait())
        try:
            await asyncio.wait({calling, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise ReplicaGoneError("it does not answer, and others do")
            reply: Reply = calling.result()
            return reply
        finally:
            calling.cancel()
            given_up.cancel()

    async def _all_called(self, names: Collection[str], *call: Any) -> list[Reply | BaseException]:
        """Return what replicas reply or raise; of those that are silent nothing, once all others have answered."""
        calls = {asyncio.ensure_future(self._calls.call(name, *call)): name for name in names}
        try:
            while True:
                done, left = await asyncio.wait(calls, timeout=LOOK_S)
                if not left or (done and all(self._replicas.get(calls[one], _Replica()).silent for one in left)):
                    return [one.exception() or one.result() for one in done]
        finally:
            for one in calls:
                one.cancel()

    async def _choose(self, digest: str, tried: set[str]) -> str:
        """Return the replica for a ticket: one that was not tried, where there is one; NotReadyError where none is."""
        give_up = time.monotonic() + WAIT_S
        while True:
            present = self._calls.present()
            names = present - tried or (present if time.monotonic() >= give_up - WAIT_S + SILENT_S else frozenset())
            if names:
                place = self._place(present)
                return min(names, key=lambda name: self._cost(name, digest, place))
            if time.monotonic() > give_up:
                raise NotReadyError("no replica is there to answer: try again later")
            await asyncio.sleep(LOOK_S / 10)

    def _cost(self, name: str, digest: str, place: Placement) -> tuple[bool, bool, bool, int, int]:
        """Return what is compared: whether it or its device does not answer, the artifact is missing, and it is not to
        be there, the tokens under way, and the turns of equals.

        A replica that should give it up comes last: it could not while it is used.
        """
        known = self._replicas.get(name, _Replica())
        missing = known.status is None or digest not in known.status.digests
        elsewhere = digest not in place.get(name, ())
        return known.stalled or known.silent, missing, elsewhere, known.sent_tokens, known.sent

    def _place(self, names: frozenset[str]) -> Placement:
        return self._places.of({one.artifact.digest: one.base_name for one in self._models}, names)

    def _note_held(self, reply: Reply) -> None:
        """Take in what a replica holds before its next status says so: others may have gone for what it loaded."""
        known = self._replicas.get(reply.replica)
        if known is not None and known.status is not None:
            known.status = replace(known.status, digests=reply.digests)

    async def _loaded(self, digest: str, base: str, folder: Path) -> Facts:
        """Return the facts of an artifact, once all replicas that are to hold it have loaded it."""
        with self._places.coming(digest, base):
            return await self._loaded_in_place(digest, base, folder)

    async def _loaded_in_place(self, digest: str, base: str, folder: Path) -> Facts:
        began, tries = time.monotonic(), TRIES + 1
        give_up = began + self._settings.request_timeout_s
        while tries:
            while not (present := self._calls.present()):
                await asyncio.sleep(LOOK_S / 10)
            together = self._places.go_ahead(base, present, lambda name: self._cost(name, digest, {}))
            place = self._place(present)
            wanted = [name for name in place if digest in place[name]]
            others = {name: its for name, its in place.items() if name not in wanted}
            if self._places.ahead in wanted and not self._all_loaded(others, began) and time.monotonic() < give_up:
                await asyncio.sleep(LOOK_S)  # what it alone has comes to the others first
                continue
            if not wanted:
                if time.monotonic() >= give_up:
                    raise ShelfFullError("no scorer has a place for another artifact: unload one, or try again")
                await asyncio.sleep(LOOK_S)
                continue
            replies = await self._all_called(wanted, "load", digest, str(folder), together)
            loaded = [reply for reply in replies if isinstance(reply, Reply) and reply.error is None]
            for reply in loaded:
                self._note_held(reply)
            outcomes = [reply.error if isinstance(reply, Reply) else reply for reply in replies]
            errors = [error for error in outcomes if error is not None and not isinstance(error, ReplicaGoneError)]
            # Nothing is in use for longer than a request lasts.
            full = [error for error in errors if isinstance(error, InUseError) and time.monotonic() < give_up]
            for error in errors:
                if error not in full:
                    raise error
            if full:
                await asyncio.sleep(LOOK_S)
            elif loaded:
                return cast(Facts, loaded[0].value)
            else:
                tries -= 1
        raise DeviceFaultError("the replicas are gone before they loaded the artifact")

    def _all_loaded(self, place: Placement, since: float) -> bool:
        """Return whether all that is to be at replicas is at one that is to have it, by what they said since a time.

        Replicas elsewhere do not count: later requests go there.
        """
        known = {name: self._replicas.get(name, _Replica()) for name in place}
        loaded = [place[n] & one.status.digests for n, one in known.items() if one.status and one.asked >= since]
        return frozenset().union(*place.values()) <= frozenset().union(*loaded)

    async def _look_forever(self) -> None:
        looks: dict[str, asyncio.Task[None]] = {}
        try:
            await self._look_at_all(looks)
        finally:
            for look in looks.values():
                look.cancel()

    async def _look_at_all(self, looks: dict[str, asyncio.Task[None]]) -> None:
        """Look at each replica in a task of its own: one that does not answer keeps none of the others waiting."""
        while True:
            names = self._calls.present()
            for name in set(self._replicas) - names:
                if self._replicas[name].sent_tokens == 0:
                    del self._replicas[name]
            for name in names:
                self._replicas.setdefault(name, _Replica())
            live = {*self._live(names)}
            with self._lock:
                limits = self._settings.queue_limits(self.batch_tokens, max(1, len(live)))
                self._admission.resize(Amount(*limits))
            for name, known in self._replicas.items():
                if known.silent and live - {name}:
                    known.given_up.set()
                else:
                    known.given_up.clear()
            # If none is known yet, the first call lets the router find them.
            wanted = names or {""}
            for name in set(looks) - wanted:
                looks.pop(name).cancel()
            for name in wanted:
                if name not in looks or looks[name].done():
                    looks[name] = asyncio.ensure_future(self._look_at(name))
            await asyncio.sleep(LOOK_S)

    async def _look_at(self, name: str) -> None:
        place = self._place(self._calls.present()).get(name, ())
        wanted = {one.artifact.digest: str(one.artifact.path) for one in self._models if one.artifact.digest in place}
        try:
            asked_at = time.monotonic()
            async with asyncio.timeout(SILENT_S):
                last_batch = self._replicas.get(name, _Replica()).batches_to
                status: Status = await self._calls.call(name, "status", wanted, self._name, last_batch)
        except (ReplicaGoneError, TimeoutError):
            return
        known = self._replicas.setdefault(status.replica, _Replica())
        known.status, known.asked, known.seen = status, asked_at, time.monotonic()
        new = status.batches[-(status.batches_to - known.batches_to) :] if status.batches_to > known.batches_to else ()
        known.batches_to = status.batches_to
        for report in new:
            for watcher in self._on_batch:
                watcher(report)

    def _learn(self, ticket: Ticket, reply: Reply) -> None:
        """Take in how fast a replica was, times how many there are: what Retry-After is worked out from."""
        if reply.compute_s > 0:
            with self._lock:
                self._admission.learn_speed(ticket.tokens * max(1, len(self._replicas)), reply.compute_s)
