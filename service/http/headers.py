"""What every answer tells a browser: run nothing, show it in no frame, hand it to no other site, keep no copy.

The documentation page alone runs a script, its own: the policy names that script by its digest.
"""

from __future__ import annotations

import base64
import hashlib

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: On every answer.
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class SafeHeaders:
    """ASGI middleware: puts these headers on every answer, errors included.

    Args:
        docs_script: the text of the documentation page's inline script.
    """

    def __init__(self, app: ASGIApp, docs_script: str) -> None:
        self._app = app
        digest = base64.b64encode(hashlib.sha256(docs_script.encode()).digest()).decode()
        # Swagger UI's style sheet holds pictures as data.
        self._docs_policy = (
            f"{_NOTHING}; script-src 'self' 'sha256-{digest}'; style-src 'self'; img-src 'self' data:; "
            "connect-src 'self'"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(ALWAYS)
                headers["content-security-policy"] = self._docs_policy if path == "/docs" else _NOTHING
                # The page's assets change with the package alone; everything else is about one request.
                if not path.startswith("/docs"):
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_with_headers)
