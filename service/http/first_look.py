"""Refuses requests by their head alone, for every caller: odd paths, and cross-site requests of a browser.

A browser sends some requests of any page to any server without asking it: a POST without a content type, say. The
answer stays hidden from the page, but the work is done. Without keys, only this stops it.

A page can also have the name that it was loaded from lead to this machine later (DNS rebinding). To the browser it is
then a page of this server, and reads every answer. The Host header still has that name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ForeignOriginError, RouteNotFoundError, ServiceError, UnknownHostError
from service.security.access import Answer, line_of

#: In no path of ours. A pattern's ``.`` and ``$`` take a line feed for the end, so that two tables could differ on it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: They change nothing, and cost little. A browser asks by OPTIONS before it sends what a form cannot.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: The origins that are allowed: this origin's own page, or the user.
_OURS = frozenset({"same-origin", "none"})
#: A Host header: a name or an address, and perhaps a port.
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+?)\.?)(?::[0-9]{0,5})?")
#: Begins the paths that orchestrators and monitoring ask for, by whatever name or address.
PROBED: Final = ("/health", "/metrics")


class FirstLook:
    """ASGI middleware: refuses, by ``answer``, paths with control characters and requests of other origins' pages.

    Args:
        origins: whose pages may call this server.
        hosts: the names that it may be called by, beside those of ``is_ours``; None: any.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], hosts: Collection[str] | None, answer: Answer) -> None:
        self._app, self._origins, self._answer = app, frozenset(origins), answer
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(scope)) is not None:
            response = await self._answer(Request(scope), error)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        if _CONTROL.search(scope["path"]):
            return RouteNotFoundError("no endpoint at this path: /docs lists them")
        headers, safe = Headers(scope=scope), scope["method"] in _SAFE
        error: ServiceError
        if (
            self._hosts is not None
            and not (safe and scope["path"].startswith(PROBED))
            and not is_ours(headers, self._hosts)
        ):
            error = UnknownHostError(
                "the server asks for no API key, so it has to be called by an IP address, by localhost or by a name "
                "that it was told, and the Host header has another: start it with --allowed-hosts NAME "
                "(LAPLORA_ALLOWED_HOSTS=NAME), or with API keys",
                field="host",
            )
        elif not safe and is_foreign(headers, self._origins):
            error = ForeignOriginError(
                "a web page of another origin sent this: start the server with --cors-origins to let that page call "
                "it; a proxy in between must hand on Host as it came"
            )
        else:
            return None
        # No router has seen the request yet: this is the endpoint's name in the log and the metrics.
        scope["route"] = line_of(scope["method"], scope["path"])
        return error


def is_ours(headers: Headers, names: Collection[str]) -> bool:
    """Return whether a request was sent to an address, to localhost or a name below it, or to one of these names.

    No page can choose where an address leads. A program may leave Host out; no browser does.
    """
    return all(_is_one_of(value.lower(), names) for value in headers.getlist("host"))


def _is_one_of(host: str, names: Collection[str]) -> bool:
    parts = _HOST.fullmatch(host)
    name = parts and parts["name"]
    if name and (name in names or name.rpartition(".")[2] == "localhost"):
        return True
    try:
        return parts is not None and bool(ip_address(parts["address"] or parts["name"]))
    except ValueError:
        return False


def is_foreign(headers: Headers, origins: Collection[str]) -> bool:
    """Return whether a browser says that another origin's page sent a request, and none of these origins'."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin in origins:
        return False
    if site is not None:
        return site not in _OURS
    # Browsers that leave the site out, as they do on plain HTTP, still name the origin. Programs name neither.
    return origin is not None and origin.partition("://")[2] != headers.get("host")
