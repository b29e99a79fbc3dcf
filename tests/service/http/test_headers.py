"""What every answer says to a browser, which origins' pages may call, and the files that our own page is made of."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from serving import Served, code, serve

import service.page
from service.page.shell import read_assets
from service.security.access import ACCESS

pytestmark = pytest.mark.anyio

BODY = {"inputs": [{"text": "a"}]}
ORIGIN = "https://app.example"
#: What the page is made of.
STATIC = Path(service.page.__file__).parent / "static"


def assert_always(headers: httpx.Headers) -> None:
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"


async def test_every_answer_is_for_one_reader(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    for asked in (
        *("POST /predict 200", "POST /evaluate 422", "GET /nowhere 404", "GET /assets/nothing.js 404"),
        *("GET /docs/assets/nothing.js 404", "GET /predict 405", "GET /health/live 200", "GET /metrics 200"),
        "GET /openapi.json 200",
    ):
        method, path, status = asked.split()
        answer = await served.client.request(method, path, json=BODY if method == "POST" else None)
        assert answer.status_code == int(status)
        assert_always(answer.headers)
        policy = answer.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy)
        assert not any(part.startswith(("script-src", "style-src", "connect-src")) for part in policy)
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)
    monkeypatch.setattr("service.http.routes.predict.check_finite", None)
    crashed = await served.client.post("/predict", json=BODY)
    assert crashed.status_code == 500
    assert_always(crashed.headers)


def policy_of(page: httpx.Response) -> dict[str, str]:
    return dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))


async def test_the_page_and_the_documentation_may_run_their_own_files_and_nothing_else(served: Served) -> None:
    page = await served.client.get("/")
    policy = policy_of(page)
    assert policy.pop("default-src") == policy.pop("trusted-types") == "'none'"
    assert all(policy.pop(name) == "'none'" for name in ("frame-ancestors", "base-uri", "form-action"))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy == dict.fromkeys(("script-src", "style-src", "img-src", "connect-src"), "'self'")
    assert page.headers["cache-control"] == "no-store"
    assert_always(page.headers)
    # No inline script (data is none), style or handler, which the policy would stop.
    inline = r"<style|<script(?![^>]* (?:src=|type=.application/json))|\sstyle=|\son[a-z]+=|javascript:"
    assert not re.search(inline, page.text)

    docs = await served.client.get("/docs")
    links = re.findall(r'(?:src|href)="([^"]+)"', docs.text)
    assert {link.rpartition(".")[2] for link in links} >= {"js", "css"}
    for link in links:  # none of them needs a network
        asset = await served.client.get(f"/{link}")
        assert asset.status_code == 200
        assert_always(asset.headers)
    policy = policy_of(docs)
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert re.fullmatch(r"'self' 'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert len(re.findall(r"<script>", docs.text)) == 1
    assert not any("no-store" in kept.headers.get("cache-control", "") for kept in (docs, asset))
    refused = await served.client.post("/docs")
    assert (refused.status_code, refused.headers["cache-control"]) == (405, "no-store")


#: What a browser says of another origin's page.
FOREIGN: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:9999"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "origin": "null"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://["},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": f"{ORIGIN}.evil.example"},
]


async def test_another_origins_page_makes_nothing_happen(served: Served) -> None:
    for headers in FOREIGN:
        # Without a content type: what a browser sends unasked.
        refused = await served.client.post("/v1/systemone", content=b'{"state": "a"}', headers=headers)
        assert (refused.status_code, refused.json()["detail"]["error_type"]) == (403, "foreign_origin"), headers
        assert "--cors-origins" in refused.json()["detail"]["message"]
        assert code(await served.client.post("/predict", json={}, headers=headers)) == (403, "foreign_origin"), headers
    for method, path in (endpoint.split(" ") for endpoint in ACCESS if not endpoint.startswith("GET ")):
        path = path.replace("{rest:path}", "a/cancel")
        answer = await served.client.request(method, path, headers=FOREIGN[0])
        assert answer.status_code == 403, (method, path)
    assert served.predictor.batches == []


async def test_programs_and_the_own_page_may_ask(served: Served) -> None:
    host = served.client.base_url.netloc.decode()
    for headers in (
        {},
        {"sec-fetch-site": "none"},
        {"origin": f"http://{host}"},
        # A proxy that ends TLS, and one that names itself.
        {"sec-fetch-site": "same-origin", "origin": "https://laplora.example"},
        {"origin": "https://localhost", "host": "localhost"},
    ):
        assert (await served.client.post("/predict", json=BODY, headers=headers)).status_code == 200, headers
    # What changes nothing may be linked to from anywhere.
    assert (await served.client.get("/health/live", headers=FOREIGN[0])).status_code == 200


async def test_without_keys_no_name_that_a_page_chose_leads_here(served: Served) -> None:
    """A page can have its own name lead to this machine: then it is of the server's origin, and reads the answer."""
    rebound = ("evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.evil.example", "xlocalhost")
    odd = ("", ":80", "localhost@evil.example", "evil.example#localhost", "local host", "[::1]x", "[localhost]", "::1")
    for host in (*rebound, *odd, "test", "2130706433", "[::1", "localhost:http"):
        headers = {"host": host, "origin": f"http://{host}"}
        refused = await served.client.post("/predict", json=BODY, headers=headers)
        assert code(refused) == (421, "unknown_host"), host
        assert "--allowed-hosts" in refused.json()["error"]["message"]
        for path in ("/", "/artifacts", "/openapi.json", "/docs/assets/swagger-ui.css", "/evaluate/jobs", "/nowhere"):
            assert (await served.client.get(path, headers={"host": host})).status_code == 421, (host, path)
        # A probe sends its pod's address, or any name.
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert (await served.client.get(path, headers={"host": host})).status_code == 200, (host, path)
            assert (await served.client.post(path, headers={"host": host})).status_code == 421, (host, path)
    assert served.predictor.batches == []
    # One that is right beside one that is wrong, as another server than ours may let through.
    both = [("host", "localhost"), ("host", "evil.example")]
    assert (await served.client.post("/predict", json=BODY, headers=both)).status_code == 421
    addresses = ("10.1.2.3", "10.1.2.3:8000", "[::1]", "[FE80::1]:8000", "127.0.0.1:")
    for host in (*addresses, "localhost", "LocalHost:8000", "localhost.", "demo.localhost"):
        assert (await served.client.post("/predict", json=BODY, headers={"host": host})).status_code == 200, host


async def test_names_that_the_server_was_told_lead_here() -> None:
    async with serve(host="gpu-box", allowed_hosts="Laplora, laplora.ml.svc") as served:
        for host in ("gpu-box:8000", "laplora", "laplora:80", "LAPLORA.ml.svc.", "localhost"):
            assert (await served.client.post("/predict", json=BODY, headers={"host": host})).status_code == 200, host
        for host in ("laplora.ml", "x.laplora", "evil.example"):
            assert (await served.client.post("/predict", json=BODY, headers={"host": host})).status_code == 421, host
    async with serve(allowed_hosts=("*",)) as served:
        assert (await served.client.post("/predict", json=BODY, headers={"host": "any"})).status_code == 200


def preflight(origin: str, method: str = "POST", header: str = "authorization") -> dict[str, str]:
    asked = {"access-control-request-method": method, "access-control-request-headers": header}
    return {"origin": origin, **asked}


async def test_named_origins_may_call_and_no_other(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    asked = await served.client.options("/predict", headers=preflight(ORIGIN))
    assert (asked.status_code, "access-control-allow-origin" in asked.headers) == (405, False)
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
        foreign = {"origin": ORIGIN, "sec-fetch-site": "cross-site"}
        assert (await served.client.post("/predict", json=BODY, headers=foreign)).status_code == 200
        for other in ("https://app.example.evil", "http://app.example", f"{ORIGIN}:8443", "null"):
            asked = await served.client.options("/predict", headers=preflight(other))
            assert asked.status_code == 400
            assert "access-control-allow-origin" not in asked.headers
            answer = await served.client.post("/predict", json=BODY, headers={"origin": other})
            assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)
        for method, header in (("PUT", "authorization"), ("POST", "x-other")):
            asked = await served.client.options("/predict", headers=preflight(ORIGIN, method, header))
            assert asked.status_code == 400
        monkeypatch.setattr("service.http.routes.predict.check_finite", None)
        crashed = await served.client.post("/predict", json=BODY, headers={"origin": ORIGIN})
        assert (crashed.status_code, crashed.headers["access-control-allow-origin"]) == (500, ORIGIN)


async def test_every_file_and_operation_that_the_page_names_is_there(served: Served) -> None:
    page = (await served.client.get("/")).text
    named = set(re.findall(r'(?:src|href)="assets/([^"]+)"', page))
    for script in STATIC.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', script.read_text(encoding="utf-8")))
    assert named == set(read_assets()), "a file that nothing names, or a name without a file"
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in named:
        answer = await served.client.get(f"/assets/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(types[Path(name).suffix]), name
        assert answer.content == (STATIC / name).read_bytes()
    document = (await served.client.get("/openapi.json")).json()
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    linked = set(re.findall(r'href="docs#/(\w+)/(\w+)"', page))
    assert linked
    assert linked <= {(tag, one["operationId"]) for one in operations for tag in one["tags"]}


async def test_a_kept_file_is_sent_only_if_it_changed_and_no_other_by_its_path(served: Served) -> None:
    first = await served.client.get("/assets/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await served.client.get("/assets/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await served.client.get("/assets/main.js", headers={"if-none-match": '"another"'})
    assert (other.status_code, other.content) == (200, first.content)
    for name in ("nothing.js", "..%2Fshell.py", "%2Fetc%2Fpasswd", "main.js%00", "templates%2Fpage.html"):
        assert code(await served.client.get(f"/assets/{name}")) == (404, "route_not_found"), name
