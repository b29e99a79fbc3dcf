"""How many requests are answered at once and how many bytes their bodies have: past that, a POST is refused unread.

One caller has at most its share of both, so that there is always a place for somebody else. Administration, cancelling
a job, health and metrics need no place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ClientTooManyRequestsError, ServiceError, TooManyRequestsError
from service.http.body import hear_out
from service.security.access import Answer, line_of
from service.security.callers import caller_of

#: Cancelling a job has no body, and makes room.
_FREE = frozenset({"/evaluate/jobs/{rest:path}"})
#: What needs room in the queue.
_SCORED = frozenset({"/predict", "/evaluate"})


def needs_place(method: str, path: str) -> bool:
    """Return whether a request takes one of the places, so that it may be refused with 429 for want of one."""
    line = line_of(method, path)
    return method == "POST" and (line is None or (line.need != "admin" and line.path not in _FREE))


@dataclass(eq=False)
class Place:
    """One request that is being answered; only its :class:`Places` changes it."""

    caller: str
    body_bytes: int = 0


class Places:
    """Who has how many of the places, and of the bytes of bodies. For the event loop's thread alone.

    Args:
        max_requests: most places.
        max_bytes: most bytes of the bodies of all who have a place.
        client_share: most that one caller has, as a share of each.
    """

    def __init__(self, *, max_requests: int, max_bytes: int, client_share: float = 1.0) -> None:
        self._requests = SharedLimit("requests", "max_requests", max_requests, client_share)
        self._bytes = SharedLimit("bytes of bodies", "max_in_flight_bytes", max_bytes, client_share)

    @property
    def requests(self) -> int:
        """How many places are taken."""
        return self._requests.total

    @property
    def body_bytes(self) -> int:
        """Bytes of bodies that have come, or are announced, and whose requests are not yet answered."""
        return self._bytes.total

    def take(self, caller: str) -> Place:
        """Return a place for one request; give it back with ``leave``.

        Raises:
            ClientTooManyRequestsError, TooManyRequestsError: the caller's share, or every place, is taken.
        """
        self._requests.add(caller, 1)
        return Place(caller)

    def hold(self, place: Place, more_bytes: int) -> None:
        """Count so many bytes more of a place's body, before they are read.

        Raises:
            ClientTooManyRequestsError, TooManyRequestsError: there is no room for them.
        """
        self._bytes.add(place.caller, more_bytes)
        place.body_bytes += more_bytes

    def leave(self, place: Place) -> None:
        """Give a place back, with its bytes. Once for each place."""
        self._requests.remove(place.caller, 1)
        self._bytes.remove(place.caller, place.body_bytes)
        place.body_bytes = 0


class SharedLimit:
    """Something that all callers share, with a most for everybody together and one for each."""

    def __init__(self, what: str, setting: str, most: int, client_share: float) -> None:
        self._what, self._setting, self._most = what, setting, most
        self._client_most = max(1, int(most * client_share))
        self._by_caller: dict[str, int] = {}
        self.total = 0

    def add(self, caller: str, more: int, *, whole: bool = False) -> None:
        """Count so many more for a caller.

        Args:
            whole: whether this caller may have all there is, and not its share alone.

        Raises:
            ClientTooManyRequestsError, TooManyRequestsError: the caller's share, or all, is taken.
        """
        own = self._by_caller.get(caller, 0)
        if not whole and own + more > self._client_most < self._most:
            raise ClientTooManyRequestsError(
                f"you have {own} {self._what} in flight and {more} came, one caller may have {self._client_most} "
                f"({self._setting} times client_share): wait for your own answers first",
                limit=self._client_most,
                got=own + more,
            )
        if self.total + more > self._most:
            raise TooManyRequestsError(
                f"{self.total} {self._what} are in flight and {more} came, {self._setting} is {self._most}: "
                "try again later",
                limit=self._most,
                got=self.total + more,
            )
        self.total += more
        self._by_caller[caller] = own + more

    def remove(self, caller: str, less: int) -> None:
        """Take so many off a caller's."""
        self.total -= less
        left = self._by_caller.get(caller, 0) - less
        if left:
            self._by_caller[caller] = left
        else:
            self._by_caller.pop(caller, None)


class InFlight:
    """ASGI middleware: gives each POST its place (``request.state.place``), and refuses those that there is none for.

    A request that the queue has no room for, however small, is refused here too, before any of its body is read.

    Args:
        places: who has which.
        check_queue: raises where the queue takes nothing of a caller, by its name.
        answer: makes the response for an error.
    """

    def __init__(self, app: ASGIApp, places: Places, check_queue: Callable[[str], None], answer: Answer) -> None:
        self._app = app
        self._places = places
        self._check_queue = check_queue
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or not needs_place(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        line = line_of(scope["method"], scope["path"])
        request = Request(scope, receive)
        caller = caller_of(request).name
        try:
            place = self._places.take(caller)
        except ServiceError as error:
            await self._refuse(request, error, send)
            return
        try:
            if line is not None and line.path in _SCORED:
                self._check_queue(caller)
            request.state.place = place
        except ServiceError as error:
            await self._refuse(request, error, send)
        else:
            await self._app(scope, receive, send)
        finally:
            self._places.leave(place)

    async def _refuse(self, request: Request, error: Exception, send: Send) -> None:
        scope = request.scope
        # No router has seen the request: this is the endpoint's name in the log and the metrics.
        scope["route"] = line_of(scope["method"], scope["path"])
        try:
            await hear_out(request)
        except ClientDisconnect:
            return
        response = await self._answer(request, error)
        await response(scope, request.receive, send)
