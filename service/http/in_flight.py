"""How many requests are answered at once and how many bytes their bodies have: past that, a POST is refused unread.

One caller has at most its share of both, so that there is always a place for somebody else. While no other caller is
there (``service.scoring.admission``), it may have all places. Requests without a body need no place: administration
(but for labels to learn from), cancelling a job, health and metrics.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ClientTooManyRequestsError, ServiceError, TooManyRequestsError
from service.http.body import hear_out
from service.scoring.admission import SPARE_SHARE, Presence
from service.security.access import Answer, line_of
from service.security.callers import caller_of

#: POSTs without a body: they change what is loaded, or make room.
_FREE = frozenset({"/artifacts/{rest:path}", "/evaluate/jobs/{rest:path}"})
#: The endpoints that need room in the queue.
SCORED: Final = frozenset({"/predict", "/v1/systemone", "/evaluate", "/suggest"})


def needs_place(method: str, path: str) -> bool:
    """Return whether a request takes one of the places, so that it may be refused with 429 for want of one."""
    line = line_of(method, path)
    return method == "POST" and (line is None or line.path not in _FREE)


class SharedLimit:
    """Something that all callers share, with a most for everybody together and one for each. For the event loop.

    Args:
        what: its name in messages; setting: the name of what limits it; most: of it, for everybody together.
        client_share: most that one caller has, as a share of ``most``.
        lent: whether a caller may have all while no other is there, and one that has none may exceed ``most`` by an
            eighth.
    """

    def __init__(self, what: str, setting: str, most: int, client_share: float, *, lent: bool = False) -> None:
        self._here: Presence | None = Presence() if lent else None
        self._spare = 1 + SPARE_SHARE if lent else 1.0
        self._what, self._setting, self._most = what, setting, most
        self._client_most = max(1, int(most * client_share))
        self._by_caller: Counter[str] = Counter()
        self.total = 0

    def add(self, caller: str, more: int, *, whole: bool = False) -> None:
        """Count so many more for a caller.

        Args:
            whole: whether this caller may have all there is, and not its share alone.

        Raises:
            ClientTooManyRequestsError, TooManyRequestsError: the caller's share, or all, is taken.
        """
        so_far = self._by_caller[caller]
        if self._here is not None:
            whole = self._here.alone(caller, self._by_caller, time.monotonic())
        if not whole and so_far + more > self._client_most < self._most:
            raise ClientTooManyRequestsError(
                f"you have {so_far} {self._what} in flight and {more} came, one caller may have {self._client_most} "
                f"({self._setting} times client_share): wait for your own answers first",
                limit=self._client_most,
                got=so_far + more,
            )
        if self.total + more > self._most * (1.0 if so_far else self._spare):
            raise TooManyRequestsError(
                f"{self.total} {self._what} are in flight and {more} came, {self._setting} is {self._most}: "
                "try again later",
                limit=self._most,
                got=self.total + more,
            )
        self.total += more
        self._by_caller[caller] += more

    def remove(self, caller: str, less: int) -> None:
        """Take so many off a caller's."""
        self.total -= less
        self._by_caller[caller] -= less
        if not self._by_caller[caller]:
            del self._by_caller[caller]


class InFlight:
    """ASGI middleware: gives each POST its place, and refuses those that there is none for.

    ``request.state.hold`` counts bytes of its body before they are read, ``hold_answer`` numbers of its answer before
    they are computed, both until it is answered, and both raise as ``SharedLimit.add``. A request that the queue has no
    room for, however small, is refused here too, before any of its body is read.

    Args:
        requests: how many are answered at once, and of whom; ``body_bytes``, ``answer_numbers`` the same of what they
            bring and of what their answers have.
        check_queue: raises where the queue takes nothing of a caller, by its name.
        answer: makes the response for an error.
    """

    def __init__(
        self,
        app: ASGIApp,
        requests: SharedLimit,
        body_bytes: SharedLimit,
        answer_numbers: SharedLimit,
        check_queue: Callable[[str], None],
        answer: Answer,
    ) -> None:
        self._app, self._answer = app, answer
        self._requests, self._check_queue = requests, check_queue
        self._body_bytes, self._answer_numbers = body_bytes, answer_numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not needs_place(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        caller = caller_of(request).name
        held: Counter[SharedLimit] = Counter()

        def hold(limit: SharedLimit, more: int) -> None:
            limit.add(caller, more)
            held[limit] += more

        try:
            self._requests.add(caller, 1)
        except ServiceError as error:
            await self._refuse(request, error, send)
            return
        request.state.hold = partial(hold, self._body_bytes)
        request.state.hold_answer = partial(hold, self._answer_numbers)
        try:
            line = line_of(scope["method"], scope["path"])
            if line is not None and line.path in SCORED:
                self._check_queue(caller)
        except ServiceError as error:
            await self._refuse(request, error, send)
        else:
            await self._app(scope, receive, send)
        finally:
            self._requests.remove(caller, 1)
            for limit, amount in held.items():
                limit.remove(caller, amount)

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
