"""What is refused for its head alone, whoever asks: odd paths, and what another site's page lets a browser send.

A browser sends some requests of any page to any server without asking it: a POST without a content type, say. The
answer stays hidden from the page, but the work is done. Where there are no keys, this is all that stops it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ForeignOriginError, RouteNotFoundError, ServiceError
from service.security.access import Answer, line_of

#: In no path of ours. A pattern's ``.`` and ``$`` take a line feed for the end, so that two tables could differ on it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: They change nothing, and cost little. A browser asks by OPTIONS before it sends what a form cannot.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: Where a browser says that a request comes from: this origin's own page, or the user.
_OURS = frozenset({"same-origin", "none"})


class FirstLook:
    """ASGI middleware: refuses, by ``answer``, paths with control characters and requests of other origins' pages.

    Args:
        origins: whose pages may call this server.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], answer: Answer) -> None:
        self._app, self._origins, self._answer = app, frozenset(origins), answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and (error := self._refusal(scope)) is not None:
            response = await self._answer(Request(scope), error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        if _CONTROL.search(scope["path"]):
            return RouteNotFoundError("no endpoint at this path: /docs lists them")
        if scope["method"] in _SAFE or not is_foreign(Headers(scope=scope), self._origins):
            return None
        # No router has seen the request yet: this is the endpoint's name in the log and the metrics.
        scope["route"] = line_of(scope["method"], scope["path"])
        return ForeignOriginError(
            "a web page of another origin sent this: start the server with --cors-origins to let that page call it; "
            "a proxy in between must hand on Host as it came"
        )


def is_foreign(headers: Headers, origins: Collection[str]) -> bool:
    """Return whether a browser says that another origin's page sent a request, and none of these origins'."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin in origins:
        return False
    if site is not None:
        return site not in _OURS
    # Browsers that leave the site out, as they do on plain HTTP, still name the origin. Programs name neither.
    return origin is not None and origin.partition("://")[2] != headers.get("host")
