"""A decision model over real HTTP on a thread, that can also be slow, busy, dead, a liar, or another model."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Answers a request in place of the model; returns whether it did.
Trick = Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool]


class DecisionServer:
    """Answers every question by the letters of the state: an option's weight is 1 and how often its first letter is
    there.

    Attributes:
        name: that the model gives itself; url: of the server.
        bodies, keys: of the requests; most: of them at once.
        trick: answers some in the model's place.
        hold_s: seconds that each answer takes longer.
    """

    def __init__(self, port: int) -> None:
        self.name, self.url = "letters-1", f"http://127.0.0.1:{port}"
        self.bodies, self.keys = list[dict[str, Any]](), list[str | None]()
        self.trick: Trick | None = None
        self.hold_s, self.most, self._now = 0.0, 0, 0
        self._lock = threading.Lock()

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["content-length"]))
        if not raw:  # who asked has gone
            return
        body = json.loads(raw)
        with self._lock:
            self.bodies.append(body)
            self.keys.append(handler.headers.get("authorization"))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.hold_s)
            if self.trick is None or not self.trick(handler, body):
                send(handler, 200, self.answer(body))
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return what the model answers to a request."""
        answers = {name: self._one(str(body["state"]), of) for name, of in body["questions"].items()}
        return {"model": self.name, "answers": answers, "usage": {"input_tokens": 1, "output_tokens": 0}}

    def _one(self, state: str, question: dict[str, Any]) -> dict[str, Any]:
        kind, criteria = question["type"], question.get("criteria")
        names = {"noul": ["false", "true"], "choice": list(criteria or ()), "score": list(map(str, range(9)))}[kind]
        names = names[: len(criteria)] if kind == "score" else names
        weights = [1 + state.count(name[0]) for name in names]
        probs = {name: round(weight / sum(weights), 4) for name, weight in zip(names, weights, strict=True)}
        if kind == "noul":
            return {"type": "noul", "noul": probs["true"]}
        best = max(probs, key=lambda name: probs[name])
        answer = {"type": kind, "probabilities": probs, "confidence": 0.5}
        return answer | ({"choice": best} if kind == "choice" else {"score": float(best), "legend": {}})


def send(handler: BaseHTTPRequestHandler, status: int, body: Any, **headers: str) -> bool:
    """Send a body, JSON unless it is bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"content-type": "application/json", "content-length": str(len(raw)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(raw)
    return True


@contextmanager
def decision_server(tls: ssl.SSLContext | None = None) -> Iterator[DecisionServer]:
    """Yield a server that runs until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            model.take(self)

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # who asked has gone
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    model = DecisionServer(server.server_address[1])
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        model.url = model.url.replace("http://127.0.0.1", "https://localhost")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
