"""What every answer says to a browser, which origins may call, and that the documentation page still works."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError
from server_process import fake_artifacts, fake_server
from serving import Served, serve, settings

pytestmark = pytest.mark.anyio

BODY = {"inputs": [{"text": "a"}]}
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
ORIGIN = "https://app.example"
ASKS: dict[str, tuple[str, str, int]] = {
    "an answer": ("POST", "/predict", 200),
    "a refusal": ("POST", "/evaluate", 422),
    "no endpoint": ("GET", "/nowhere", 404),
    "another method": ("GET", "/predict", 405),
    "health": ("GET", "/health/live", 200),
    "metrics": ("GET", "/metrics", 200),
    "the document": ("GET", "/openapi.json", 200),
    "a redirect": ("GET", "/", 307),
}


@pytest.mark.parametrize(("method", "path", "status"), ASKS.values(), ids=ASKS)
async def test_every_answer_is_for_one_reader(method: str, path: str, status: int, served: Served) -> None:
    answer = await served.client.request(method, path, json=BODY if method == "POST" else None)
    assert answer.status_code == status
    assert {name: answer.headers[name] for name in ALWAYS} == ALWAYS
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert not any(part.startswith(("script-src", "style-src", "connect-src")) for part in policy)
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


async def test_a_crash_has_them_too(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    monkeypatch.setattr("service.http.routes.predict.prediction_out", None)
    answer = await served.client.post("/predict", json=BODY)
    assert answer.status_code == 500
    assert {name: answer.headers[name] for name in ALWAYS} == ALWAYS


async def test_the_documentation_page_may_run_its_own_script_and_nothing_else(served: Served) -> None:
    page = await served.client.get("/docs")
    asset = await served.client.get("/docs/assets/swagger-ui.css")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert len(re.findall(r"<script>", page.text)) == 1
    assert {name: asset.headers[name] for name in ALWAYS} == ALWAYS
    assert "no-store" not in asset.headers.get("cache-control", "")


def preflight(origin: str, method: str = "POST", header: str = "authorization") -> dict[str, str]:
    asked = {"access-control-request-method": method, "access-control-request-headers": header}
    return {"origin": origin, **asked}


async def test_no_origin_may_call_by_default(served: Served) -> None:
    asked = await served.client.options("/predict", headers=preflight(ORIGIN))
    answer = await served.client.post("/predict", json=BODY, headers={"origin": ORIGIN})
    assert asked.status_code == 405
    assert not any(name.startswith("access-control") for name in (*asked.headers, *answer.headers))


async def test_named_origins_may_call_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(cors_origins=f"{ORIGIN}, http://localhost:3000") as served:
        for origin in (ORIGIN, "http://localhost:3000"):
            asked = await served.client.options("/predict", headers=preflight(origin))
            assert asked.status_code == 200
            assert asked.headers["access-control-allow-origin"] == origin
            assert "access-control-allow-credentials" not in asked.headers
            answer = await served.client.post("/predict", json=BODY, headers={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
            refused = await served.client.post("/predict", json={}, headers={"origin": origin})
            assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (422, origin)
        for other in ("https://app.example.evil", "http://app.example", f"{ORIGIN}:8443", "null", f"{ORIGIN}/"):
            asked = await served.client.options("/predict", headers=preflight(other))
            assert asked.status_code == 400
            assert "access-control-allow-origin" not in asked.headers
            answer = await served.client.post("/predict", json=BODY, headers={"origin": other})
            assert "access-control-allow-origin" not in answer.headers
        for method, header in (("PUT", "authorization"), ("POST", "x-other")):
            asked = await served.client.options("/predict", headers=preflight(ORIGIN, method, header))
            assert asked.status_code == 400
        monkeypatch.setattr("service.http.routes.predict.prediction_out", None)
        crashed = await served.client.post("/predict", json=BODY, headers={"origin": ORIGIN})
        assert (crashed.status_code, crashed.headers["access-control-allow-origin"]) == (500, ORIGIN)


@pytest.mark.parametrize(
    "origins", ["*", "https://*.example", "app.example", "https://app.example/", "https://App.example", "null", "a b"]
)
def test_what_is_no_exact_origin_is_refused_at_the_start(origins: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        settings(cors_origins=f"{ORIGIN},{origins}")


def test_what_is_no_http_is_answered_with_them_too_and_the_server_has_no_name(tmp_path: Path) -> None:
    with fake_server(fake_artifacts(tmp_path)) as process, process.client() as client:
        address = urlsplit(str(client.base_url))
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b"no http\r\n\r\n")
            received = b"".join(iter(lambda: connection.recv(4096), b""))
        head = received.partition(b"\r\n\r\n")[0].decode().lower()
        assert head.startswith("http/1.1 400")
        for name, value in ALWAYS.items():
            assert f"{name}: {value.lower()}" in head
        assert "\r\nserver:" not in head
        assert "server" not in client.post("/predict", json=BODY).headers


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_a_browser_draws_the_documentation_under_its_policy(tmp_path: Path) -> None:
    """In a real one: every operation is drawn, one of them unfolded, with Authorize, and the policy stops nothing."""
    assert CHROMIUM is not None
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"id": "a", "sha256": "0" * 64, "scopes": ["predict"]}]}))
    root = fake_artifacts(tmp_path)
    with fake_server(root, "--auth", "keys", "--keys", str(keys)) as process, process.client() as client:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
        flags += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        drawn = subprocess.run(
            [CHROMIUM, *flags, f"{client.base_url}/docs#/scoring/predict"], capture_output=True, text=True, check=True
        )
        document = httpx.get(f"{client.base_url}/openapi.json").json()
    assert "Content Security Policy" not in drawn.stderr, drawn.stderr
    paths = set(re.findall(r'data-path="([^"]+)"', drawn.stdout))
    assert paths == set(document["paths"])
    assert "Authorize" in drawn.stdout
    assert "Try it out" in drawn.stdout
    assert drawn.stdout.count("authorization__btn") == sum(
        "security" in operation for methods in document["paths"].values() for operation in methods.values()
    )
