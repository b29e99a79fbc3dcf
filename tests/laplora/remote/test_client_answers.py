"""What the answers of a store's server are taken for: a server of this machine that always gives the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from laplora.remote.client import StoreClient, StoreError

pytest.importorskip("obstore")


class Server(ThreadingHTTPServer):
    """Answers everything by one status."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        self.send_response(server.status)
        self.send_header("etag", '"1"')
        self.send_header("content-length", "0")
        self.end_headers()

    do_HEAD = answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def client_of(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreClient]:
    thread = Thread(target=server.serve_forever)
    thread.start()
    values = {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "ALLOW_HTTP": "true"}
    values |= {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        yield StoreClient("s3://bucket", tries=0)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [*((one, "refused") for one in (400, 403, 410, 451)), (429, "unreachable"), (503, "unreachable")],
)
def test_a_store_that_refuses_is_not_one_that_is_away(status: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(Server(status), monkeypatch) as client, pytest.raises(StoreError) as raised:
        client.state("name")
    assert raised.value.kind == kind
