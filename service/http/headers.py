"""Headers of every answer to a browser: run nothing, show it in no frame, hand it to no other site, keep no copy.

The few pages for people have a policy of their own: ``PAGES`` says what each may do.
"""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: On every answer.
EVERY_ANSWER = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
#: A report may have come with an artifact, and anybody may have written it: it has no origin, and runs nothing.
_REPORT = "style-src 'unsafe-inline'; img-src data:; sandbox"
#: The permissions of the page at a path beyond ``_NOTHING``. Every other answer is no page.
PAGES = {
    # Trusted types: no script of the page can turn a text into HTML, not even by mistake.
    "/": "script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "/artifacts/{name}/report": _REPORT,
    "/evaluate/jobs/{job_id}/report": _REPORT,
    # Swagger UI has one inline script, and its style sheet holds pictures as data.
    "/docs": "script-src 'self' '{docs_script}'; style-src 'self'; img-src 'self' data:; connect-src 'self'",
}
#: Files of the pages, which change with the package alone, and the statuses that are about such a file. Everything else
#: is about one request, and nobody keeps it.
_CACHED = re.compile(r"/docs\Z|/docs/assets/|/assets/")
_CACHED_STATUSES = frozenset({200, 304})


class SafeHeaders:
    """ASGI middleware: puts these headers on every answer, errors included.

    Args:
        docs_script: the text of the documentation page's inline script.
    """

    def __init__(self, app: ASGIApp, docs_script: str) -> None:
        self._app = app
        digest = base64.b64encode(hashlib.sha256(docs_script.encode()).digest()).decode()
        self._policies: list[tuple[re.Pattern[str], str]] = [
            (compile_path(path)[0], f"{_NOTHING}; {policy.replace('{docs_script}', f'sha256-{digest}')}")
            for path, policy in PAGES.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        policy = next((policy for pattern, policy in self._policies if pattern.match(path)), _NOTHING)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(EVERY_ANSWER)
                headers["content-security-policy"] = policy
                if message["status"] not in _CACHED_STATUSES or not _CACHED.match(path):
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_with_headers)
