"""What is refused for its head alone: what pages of other origins let a browser send."""

from __future__ import annotations

import pytest
from serving import Served, code

from service.security.access import ACCESS

pytestmark = pytest.mark.anyio

ORIGIN = "https://app.example"
#: What a browser says of another origin's page.
FOREIGN: list[dict[str, str]] = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:9999"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "origin": "null"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://["},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": f"{ORIGIN}.evil.example"},
]
WRITING = [endpoint.split(" ") for endpoint in ACCESS if not endpoint.startswith("GET ")]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_another_origins_page_makes_nothing_happen(headers: dict[str, str], served: Served) -> None:
    # Without a content type: what a browser sends unasked.
    refused = await served.client.post("/tei/predict", content=b'{"inputs": "a"}', headers=headers)
    assert (refused.status_code, set(refused.json())) == (403, {"error", "error_type"})
    assert "--cors-origins" in refused.json()["error"]
    assert served.predictor.batches == []
    assert code(await served.client.post("/predict", json={}, headers=headers)) == (403, "foreign_origin")


@pytest.mark.parametrize(("method", "path"), WRITING)
async def test_no_endpoint_that_writes_is_left_out(method: str, path: str, served: Served) -> None:
    answer = await served.client.request(method, path.replace("{rest:path}", "a/cancel"), headers=FOREIGN[0])
    assert answer.status_code == 403


async def test_programs_and_the_own_page_may_ask(served: Served) -> None:
    host = served.client.base_url.netloc.decode()
    for headers in (
        {},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": f"http://{host}"},
        # A proxy that ends TLS, and one that names itself.
        {"sec-fetch-site": "same-origin", "origin": "https://laplora.example"},
        {"origin": "https://laplora.example", "host": "laplora.example"},
        {"origin": f"http://{host}"},
    ):
        answer = await served.client.post("/predict", json={"inputs": [{"text": "a"}]}, headers=headers)
        assert answer.status_code == 200, headers
    # What changes nothing may be linked to from anywhere.
    assert (await served.client.get("/health/live", headers=FOREIGN[0])).status_code == 200
