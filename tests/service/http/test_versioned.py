"""Every endpoint of the API's own answers under /v1 as it does without; decision models' protocol keeps its paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from contract import operations
from serving import Served, code, serve

from service.security.keys_file import Key, digest, write_keys

pytestmark = pytest.mark.anyio

BODY = {"inputs": [{"text": "fine 7"}]}


async def test_every_native_endpoint_is_the_same_under_v1(served: Served, tmp_path: Path) -> None:
    client = served.client
    document = (await client.get("/openapi.json")).json()
    assert [server["url"] for server in document["servers"]] == [".", "v1"]
    native = [name for name, operation in operations(document).items() if "protocols" not in operation["tags"]]
    assert len(native) > 20
    for name in native:
        method, path = re.sub(r"\{\w+\}", "nobody", name).split()
        if path == "/metrics":
            continue
        old, new = [await client.request(method, prefix + path, json={}) for prefix in ("", "/v1")]
        assert (new.status_code, without_times(new.json())) == (old.status_code, without_times(old.json())), name
    assert (await client.post("/v1/predict", json=BODY)).json()["predictions"][0]["label"] == "positive"
    metrics = (await client.get("/v1/metrics")).text
    assert 'route="/predict",status="200"' in metrics
    assert "/v1/" not in metrics
    began = await client.post("/v1/artifacts/fake/activate")
    assert began.headers["location"] == f"/v1/changes/{began.json()['id']}"
    assert (await client.get(began.headers["location"])).json()["id"] == began.json()["id"]
    assert (await client.get("/v1/models")).status_code == 200
    for path in ("/v1/nowhere", "/v1/v1/predict", "/v1predict", "/v1/docs", "/v1/", "/v1/v1/models", "/models"):
        assert code(await client.post(path, json=BODY)) == (404, "route_not_found"), path
    keys = tmp_path / "keys.json"
    write_keys(keys, [Key(id="a", sha256=digest("a"), scopes=("evaluate",))])
    async with serve(auth="keys", keys=keys) as locked:
        assert code(await locked.client.post("/v1/predict", json=BODY)) == (401, "unauthorized")


def without_times(body: Any) -> Any:
    """Return an answer without what is of one request."""
    if isinstance(body, dict):
        return {key: without_times(value) for key, value in body.items() if key not in ("request_id", "id")}
    return body
