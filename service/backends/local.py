"""The device of this process: tickets wait in its queue, and its one thread answers them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from service.artifacts.predictors import Library
from service.artifacts.token_budget import CPU_BATCH_TOKENS
from service.backends.loading import Loader
from service.errors import ArtifactNotLoadedError
from service.scoring.admission import Amount
from service.scoring.backend import Backlog, Enter
from service.scoring.device import Device
from service.scoring.device_faults import DeviceHealth
from service.scoring.entry import Entry
from service.scoring.model import Model, TokenBudget
from service.scoring.queue import Queue
from service.scoring.ticket import Ticket
from service.settings import Settings
from service.telemetry.batch_report import BatchReport

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.fitting.loaded import Given, Version
    from laplora.predictor import Predictor


class Local:
    """A queue and a device, and the artifacts that are loaded for it. A ``service.scoring.backend.Backend``.

    An artifact is found by its digest for as long as somebody holds its predictor: the shelf, or a lease.

    Args:
        on_batch: each is called on the device's thread after each run.

    Attributes:
        queue, device: which requests wait, and what runs them.
    """

    def __init__(
        self, settings: Settings, library: Library, *, on_batch: Sequence[Callable[[BatchReport], None]] = ()
    ) -> None:
        self._settings, budget = settings, settings.batch_tokens or CPU_BATCH_TOKENS
        self.queue = Queue(Amount(*settings.queue_limits(budget)), client_share=settings.client_share)
        self.device = Device(
            self.queue,
            token_budget=budget,
            on_batch=on_batch,
            health=DeviceHealth(stall_s=settings.stall_s, hang_s=settings.run_limit_s),
        )
        self._loader = Loader(settings, self.device, library)
        self._loaded: WeakValueDictionary[str, Predictor] = WeakValueDictionary()

    @property
    def batch_tokens(self) -> int:
        return self.device.token_budget

    @property
    def backlog(self) -> Backlog:
        queue = self.queue
        return Backlog(queue.rows, queue.tokens, queue.oldest_wait_s(time.monotonic()), queue.held, queue.most)

    @property
    def requests(self) -> int:
        return len(self.queue.entries)

    @property
    def failed(self) -> bool:
        return self.device.health.fault is not None

    def start(self) -> None:
        self.device.start()

    def look(self) -> None:
        """End the device if its present run does not end."""
        self.device.end_if_hung()

    def drain(self) -> None:
        self.queue.drain()

    def stop(self, *, join_timeout_s: float = 0.0) -> None:
        self.device.stop(join_timeout_s=join_timeout_s)

    def require_open(self) -> None:
        self.device.require_open()

    def require_responsive(self) -> None:
        self.device.health.require_responsive()

    def check_room(self, caller: str) -> None:
        self.queue.check_room(caller, time.monotonic())

    def enter(self, entry: Entry, expected: Amount, *, fewest_tokens: int) -> None:
        self.queue.enter(entry, expected, fewest_tokens=fewest_tokens, now=time.monotonic())

    async def submit(self, entry: Entry, ticket: Ticket) -> list[Prediction]:
        self.queue.put(entry, ticket, self.loaded(ticket.digest), now=time.monotonic())
        return await asyncio.wrap_future(entry.future)

    def loaded(self, digest: str) -> Predictor:
        """Return the predictor of a loaded artifact; ArtifactNotLoadedError where nobody holds it."""
        predictor = self._loaded.get(digest)
        if predictor is None:
            raise ArtifactNotLoadedError(f"no artifact of the digest {digest} is loaded")
        return predictor

    def load(self, folder: Path, enter: Enter) -> Predictor:
        """Return the predictor of the artifact in a folder, verified; errors as of ``Loader.load``."""
        predictor = self._loader.load(folder, enter)
        self._loaded[predictor.artifact.digest] = predictor
        return predictor

    def budget_of(self, model: Model) -> TokenBudget:
        return self._loader.budget_of(cast("Predictor", model))

    def use(self, model: Model, loaded: Sequence[Model]) -> None:
        """Set what depends on the base model and on all that are loaded: see ``Loader.use``. The queue follows."""
        self._loader.use(cast("Predictor", model), cast("Sequence[Predictor]", loaded))
        self.queue.resize(Amount(*self._settings.queue_limits(self.batch_tokens)))

    def make_version(self, model: Model, given: Given, *, go_on: Callable[[], None]) -> Version:
        """Return the version that learned from labelled rows; each pass is a run of its own, requests go between."""
        from laplora.fitting.loaded import make_version

        def run(one_pass: Callable[[], Any]) -> Any:
            go_on()
            return self.device.call(one_pass).result()

        most_tokens = self.device.token_budget
        return make_version(cast("Predictor", model), given, run=run, most_tokens=most_tokens)
