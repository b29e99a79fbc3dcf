"""The seam between requests and weights: what the server needs of whoever loads artifacts and answers tickets.

``service.backends`` has the implementations: ``local`` is the device of this process, ``ray`` replicas elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from service.scoring.admission import NOTHING, Amount
from service.scoring.entry import Entry
from service.scoring.model import Model, TokenBudget
from service.scoring.ticket import Ticket

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.fitting.loaded import Given, Version
    from service.telemetry.metrics import Phase

#: Told of each phase of a load, with a stage in words; what it raises ends the load.
Enter = Callable[["Phase", str], None]


@dataclass(frozen=True)
class Backlog:
    """The waiting work: rows, their tokens, seconds of the oldest, and what all requests hold, tokenised or not, of how
    much they may at most.
    """

    rows: int = 0
    tokens: int = 0
    oldest_wait_s: float = 0.0
    held: Amount = NOTHING
    most: Amount = NOTHING


class Backend(Protocol):
    """Loads artifacts and answers tickets. A request enters, is tokenised, and is submitted."""

    @property
    def batch_tokens(self) -> int:
        """Most padded tokens of a batch."""

    @property
    def backlog(self) -> Backlog:
        """The work that waits now."""

    @property
    def requests(self) -> int:
        """Requests that have entered and have no answer yet."""

    @property
    def failed(self) -> bool:
        """Whether it answers nothing any more, and only a new process helps."""

    def start(self) -> None:
        """Begin to take requests."""

    def look(self) -> None:
        """Notice what nobody tells, such as a run that does not end; called ten times a second."""

    def drain(self) -> None:
        """Let no more requests enter; those that have are still answered."""

    def stop(self, *, join_timeout_s: float = 0.0) -> None:
        """Fail what still waits with ``DrainingError``, and end."""

    def require_open(self) -> None:
        """Return if new work is taken.

        Raises:
            DeviceFaultError, DrainingError: it is not.
        """

    def require_responsive(self) -> None:
        """Return if new requests are to be sent here, as far as devices go.

        Raises:
            DeviceFaultError, DeviceStalledError: they are not.
        """

    def check_room(self, caller: str) -> None:
        """Check that one short row of a caller would find room: see ``Admission.check_room``."""

    def enter(self, entry: Entry, expected: Amount, *, fewest_tokens: int) -> None:
        """Reserve room for a request that is not tokenised yet; it is given back when the entry's future is done.

        Raises:
            DrainingError: nothing enters any more.
            BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Admission.reserve``.
        """

    async def submit(self, entry: Entry, ticket: Ticket) -> list[Prediction]:
        """Return one prediction for each row of a ticket, in order. Cancelling this frees what waits.

        Raises:
            ArtifactNotLoadedError: nobody holds an artifact of this digest.
            BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Admission.correct``.
            DeadlineError, UnscorableInputError, DeviceMemoryError, DeviceFaultError, DrainingError: there is no answer.
        """

    def load(self, folder: Path, enter: Enter) -> Model:
        """Return the artifact in a folder, loaded and verified: golden answers replayed. Takes as long as it takes.

        Raises:
            LaploraError: it cannot be served.
        """

    def budget_of(self, model: Model) -> TokenBudget:
        """Return how large a loaded artifact's batches may be."""

    def use(self, model: Model, loaded: Sequence[Model]) -> None:
        """Be told that a loaded artifact answers from now on, and which ones are loaded."""

    def make_version(self, model: Model, given: Given, *, go_on: Callable[[], None]) -> Version:
        """Return the version of a loaded artifact that learned from labelled rows; errors as of ``make_version``.

        Args:
            go_on: raises where nobody waits for it any more.
        """
