"""How many requests are answered at once and how many bytes their bodies have: past that, a POST is refused unread.

One caller has at most its share of both, so that there is always a place for somebody else. Administration, cancelling
a job, health and metrics need no place.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ClientTooManyRequestsError, ServiceError, TooManyRequestsError
from service.http.body import hear_out
from service.security.access import Answer, line_of
from service.security.callers import caller_of

#: What needs room in the queue.
_SCORED = frozenset({"/predict", "/evaluate"})


def needs_place(method: str, path: str) -> bool:
    """Return whether a request takes one of the places, so that it may be refused with 429 for want of one."""
    line = line_of(method, path)
    # Cancelling a job has no body, and makes room.
    free = line is not None and (line.need == "admin" or line.path == "/evaluate/jobs/{rest:path}")
    return method == "POST" and not free


class SharedLimit:
    """Something that all callers share, with a most for everybody together and one for each. For the event loop.

    Args:
        what: it is, in messages; ``setting`` is what limits it.
        client_share: most that one caller has, as a share of ``most``.
    """

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
        so_far = self._by_caller.get(caller, 0)
        if not whole and so_far + more > self._client_most < self._most:
            raise ClientTooManyRequestsError(
                f"you have {so_far} {self._what} in flight and {more} came, one caller may have {self._client_most} "
                f"({self._setting} times client_share): wait for your own answers first",
                limit=self._client_most,
                got=so_far + more,
            )
        if self.total + more > self._most:
            raise TooManyRequestsError(
                f"{self.total} {self._what} are in flight and {more} came, {self._setting} is {self._most}: "
                "try again later",
                limit=self._most,
                got=self.total + more,
            )
        self.total += more
        self._by_caller[caller] = so_far + more

    def remove(self, caller: str, less: int) -> None:
        """Take so many off a caller's."""
        self.total -= less
        left = self._by_caller.get(caller, 0) - less
        if left:
            self._by_caller[caller] = left
        else:
            self._by_caller.pop(caller, None)


class Place:
    """One request that is being answered, and the bytes of its body that have come or are announced.

    Raises:
        ClientTooManyRequestsError, TooManyRequestsError: the caller's share of the places, or every place, is taken.
    """

    def __init__(self, caller: str, requests: SharedLimit, body_bytes: SharedLimit) -> None:
        requests.add(caller, 1)
        self._caller, self._requests, self._all_bytes = caller, requests, body_bytes
        self._bytes = 0

    def hold(self, more_bytes: int) -> None:
        """Count so many bytes more of the body, before they are read.

        Raises:
            ClientTooManyRequestsError, TooManyRequestsError: there is no room for them.
        """
        self._all_bytes.add(self._caller, more_bytes)
        self._bytes += more_bytes

    def leave(self) -> None:
        """Give the place back, with its bytes. Once."""
        self._requests.remove(self._caller, 1)
        self._all_bytes.remove(self._caller, self._bytes)


class InFlight:
    """ASGI middleware: gives each POST its place (``request.state.place``), and refuses those that there is none for.

    A request that the queue has no room for, however small, is refused here too, before any of its body is read.

    Args:
        requests: how many are answered at once, and of whom; ``body_bytes`` the same of their bodies' bytes.
        check_queue: raises where the queue takes nothing of a caller, by its name.
        answer: makes the response for an error.
    """

    def __init__(
        self,
        app: ASGIApp,
        requests: SharedLimit,
        body_bytes: SharedLimit,
        check_queue: Callable[[str], None],
        answer: Answer,
    ) -> None:
        self._app, self._answer = app, answer
        self._requests, self._body_bytes, self._check_queue = requests, body_bytes, check_queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or not needs_place(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        caller = caller_of(request).name
        try:
            request.state.place = place = Place(caller, self._requests, self._body_bytes)
        except ServiceError as error:
            await self._refuse(request, error, send)
            return
        try:
            line = line_of(scope["method"], scope["path"])
            if line is not None and line.path in _SCORED:
                self._check_queue(caller)
        except ServiceError as error:
            await self._refuse(request, error, send)
        else:
            await self._app(scope, receive, send)
        finally:
            place.leave()

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
