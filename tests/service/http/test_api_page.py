"""The examples of docs/api.md: what it says to send is sent, and what it shows could have come back."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from server_process import ROOT, server_process

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FAKE_SERVER = Path(__file__).resolve().parents[1] / "fake_server.py"
BLOCK = re.compile(r"```sh\n(curl .*?)```\n(?:```json\n(.*?)```\n)?", re.DOTALL)


@dataclass
class Example:
    """One command of the page, and the answer that it shows."""

    command: str
    shown: str | None

    @property
    def request(self) -> httpx.Request:
        """What curl would send."""
        words = shlex.split(self.command.replace("\\\n", " ").replace("sst2-smollm2", "fake"))
        assert words.pop(0) == "curl"
        url, method, body, headers = "", None, None, {}
        while words:
            word = words.pop(0)
            if word == "-s":
                continue
            if word == "-X":
                method = words.pop(0)
            elif word == "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = words.pop(0)
            else:
                assert not word.startswith("-"), word
                url = f"http://{word}"
        return httpx.Request(method or ("GET" if body is None else "POST"), url, headers=headers, content=body)


EXAMPLES = [Example(*found) for found in BLOCK.findall(PAGE)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("artifacts")
    for name in ("fake", "winogrande-smollm2"):
        (root / name).mkdir()
        (root / name / "manifest.json").write_text("{}")
    command = [str(FAKE_SERVER), "--artifact", "fake", "--artifacts-root", str(root)]
    environment = {"FAKE_CHOICES": "winogrande-smollm2", "LAPLORA_AUTH": "off"}
    with (
        server_process([*command, "--also-load", "winogrande-smollm2"], environment) as process,
        process.client() as client,
    ):
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def schema_of(document: dict[str, Any], request: httpx.Request, status: int) -> dict[str, Any]:
    """Return the documented schema of an answer to a request."""
    for path, methods in document["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.url.path):
            content = methods[request.method.lower()]["responses"][str(status)]["content"]
            return {"components": document["components"], **content["application/json"]["schema"]}
    raise AssertionError(f"no such endpoint: {request.url.path}")


def test_there_are_examples_of_every_kind() -> None:
    paths = {example.request.url.path for example in EXAMPLES}
    assert {"/predict", "/evaluate", "/artifacts", "/artifacts/fake/activate", "/health/ready"} <= paths
    assert len(EXAMPLES) == PAGE.count("curl -s") >= 8


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.request.url.path)
def test_example(client: httpx.Client, document: dict[str, Any], example: Example) -> None:
    request = example.request
    response = client.request(
        request.method, request.url.raw_path.decode(), headers=dict(request.headers), content=request.content
    )
    shown = json.loads(example.shown) if example.shown else None
    refused = shown is not None and "error" in shown
    assert response.is_success != refused, response.text
    schema = schema_of(document, request, response.status_code)
    jsonschema_rs.validate(schema, response.json())
    if shown is not None:
        jsonschema_rs.validate(schema, shown)
        assert shown.keys() == response.json().keys()
        if refused:
            assert {**shown, "request_id": ""} == {**response.json(), "request_id": ""}
        elif "predictions" in shown:
            assert shown["predictions"][0].keys() == response.json()["predictions"][0].keys()
