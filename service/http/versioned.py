"""The API's own paths under ``/v1`` too. They are rewritten before anything looks at them, so that every table of
paths, such as who may ask for what, has each endpoint once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX: Final = "/v1"


class Versioned:
    """ASGI middleware: serves ``/v1/NAME...`` as ``/NAME...``.

    Args:
        names: first parts of the API's own paths. Another server's protocol may have others under ``/v1``.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        empty, _, path = scope.get("path", "").partition(f"{PREFIX}/")
        if scope["type"] != "http" or empty or path.split("/")[0] not in self._names:
            await self._app(scope, receive, send)
            return

        async def send_located(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("location", "").startswith("/"):
                    headers["location"] = f"{PREFIX}{headers['location']}"
            await send(message)

        raw = scope.get("raw_path") or b""
        await self._app({**scope, "path": f"/{path}", "raw_path": raw[len(PREFIX) :]}, receive, send_located)
