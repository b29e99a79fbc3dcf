"""Who may ask for what: every endpoint is decided, refusals come before the body, and the document says the same."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from server_process import fake_artifacts, fake_server
from serving import Served, code, serve
from starlette.routing import Mount

from service.security.access import line_of
from service.security.callers import SCOPES
from service.security.keys_file import Key, digest, new_token, write_keys

pytestmark = pytest.mark.anyio

TOKENS = {name: new_token() for name in (*sorted(SCOPES), "none")}
BODY: dict[str, Any] = {"inputs": [{"text": "a"}]}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A key for each scope, by its name."""
    file = tmp_path / "keys.json"
    write_keys(file, [Key(id=f"only-{s}", sha256=digest(TOKENS[s]), scopes=(s,)) for s in sorted(SCOPES)])
    return file


def bearer(scope: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[scope]}"}


@pytest.fixture
async def guarded(keys: Path) -> AsyncIterator[Served]:
    """A server that asks for these keys."""
    async with serve(auth="keys", keys=keys) as served:
        yield served


async def test_every_endpoint_of_the_application_is_decided(guarded: Served) -> None:
    """An endpoint without a line in service/security/access.py fails here: give it one."""
    found: list[tuple[str, str]] = []
    for context in iter_route_contexts(guarded.app.routes):
        if isinstance(context.route, Mount):
            found.append(("GET", f"{context.path}/some/file"))
        else:
            assert context.methods, f"{context.path}: neither HTTP nor a mount"
            found += [(method, str(context.path)) for method in context.methods]
    assert [endpoint for endpoint in found if line_of(*endpoint) is None] == []
    assert {"POST /predict", "GET /openapi.json", "GET /docs/assets/some/file"} <= {" ".join(e) for e in found}


async def test_what_is_open_needs_no_key_and_any_key_may_look(guarded: Served) -> None:
    health = ("/health/live", "/health/ready")
    for path in ("/", "/assets/page.css", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json", *health):
        assert (await guarded.client.get(path)).status_code == 200, path
    for path in ("/artifacts", "/changes", "/metrics", "/v1/models"):
        assert (await guarded.client.get(path)).status_code == 401
        for scope in SCOPES:
            assert (await guarded.client.get(path, headers=bearer(scope))).status_code == 200


async def test_a_scope_opens_its_own_endpoints_alone(guarded: Served) -> None:
    for needed, path, body in (
        ("predict", "/predict", BODY),
        ("evaluate", "/evaluate", {"inputs": [{"text": "a", "label": "positive"}]}),
        ("admin", "/artifacts/fake/activate", None),
    ):
        for scope in SCOPES:
            answer = await guarded.client.post(path, json=body, headers=bearer(scope))
            if scope == needed:
                assert answer.is_success
            else:
                assert code(answer) == (403, "forbidden")
                assert repr(needed) in answer.json()["error"]["message"]
        assert (await guarded.client.post(path, json=body)).status_code == 401


async def test_what_is_not_a_key_is_refused(guarded: Served) -> None:
    token = TOKENS["predict"]
    for headers in (
        {},
        {"authorization": "Bearer "},
        {"authorization": token},
        {"authorization": f"Basic {token}"},
        {"authorization": f"Bearer {TOKENS['none']}"},
        {"authorization": f"Bearer {token}x"},
        {"authorization": f"Bearer {digest(token)}"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": token},
    ):
        answer = await guarded.client.post(f"/predict?token={token}", json=BODY, headers=headers)
        assert code(answer) == (401, "unauthorized"), headers
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert "laplora_" not in answer.text


async def test_what_is_not_in_the_table_needs_admin_before_it_says_that_it_is_not_there(guarded: Served) -> None:
    for method, path in (("GET", "/nowhere"), ("PUT", "/predict"), ("GET", "/predict/")):
        assert (await guarded.client.request(method, path)).status_code == 401
        for scope in ("predict", "evaluate"):
            assert (await guarded.client.request(method, path, headers=bearer(scope))).status_code == 403
    assert (await guarded.client.get("/nowhere", headers=bearer("admin"))).status_code == 404
    assert (await guarded.client.put("/predict", headers=bearer("admin"))).status_code == 405


async def test_no_spelling_of_a_path_gets_around(guarded: Served) -> None:
    sent = httpx.Request("POST", "http://test/predict", json=BODY)
    others = ("/predict/", "//predict", "/%70redict", "/health/../predict", "/PREDICT")
    nowhere = ("/predict%0A", "/predict%00", "/artifacts/fake%0A/activate", "/%0Dpredict")
    for headers, paths, status in (({}, others, 401), ({}, nowhere, 404), (bearer("predict"), nowhere, 404)):
        sent.headers.update(headers)
        for path in paths:
            sent.url = httpx.URL("http://test/predict").copy_with(raw_path=path.encode())
            assert (await guarded.client.send(sent, follow_redirects=True)).status_code == status, path


async def test_a_refusal_reads_nothing_of_the_body(guarded: Served) -> None:
    for headers, status in (({}, 401), (bearer("evaluate"), 403)):
        read: list[bytes] = []

        async def body(read: list[bytes] = read) -> AsyncIterator[bytes]:
            read.append(b" ")
            yield b" "

        answer = await guarded.client.post("/predict", content=body(), headers=headers)
        assert (answer.status_code, read) == (status, [])


async def test_without_keys_the_document_asks_for_none(served: Served) -> None:
    text = json.dumps(served.app.openapi())
    assert not any(word in text for word in ("securitySchemes", '"security"', '"401"', '"403"'))


def test_callers_without_a_key_are_refused_before_and_after_four_megabytes(keys: Path, tmp_path: Path) -> None:
    """With 100-continue the body is never asked for; without, the answer still comes, not a reset."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4000000\r\n"
    command = fake_server(fake_artifacts(tmp_path), "--keys", str(keys), "--auth", "keys")
    with command as process, process.client() as client:
        address = urlsplit(str(client.base_url))
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head + b"expect: 100-continue\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        answer = client.post("/predict", content=b" " * 4_000_000, headers={"content-type": "application/json"})
        assert answer.status_code == 401
        assert "server" not in answer.headers
        any_case = {"authorization": f"bEARER  {TOKENS['predict']}"}
        assert client.post("/predict", json=BODY, headers=any_case).status_code == 200
