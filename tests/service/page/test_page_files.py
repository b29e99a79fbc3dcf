"""What the page is made of: its own files alone, each there, none from elsewhere, none by a path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from serving import Served

import service.page
from service.page.shell import read_assets

pytestmark = pytest.mark.anyio

STATIC = Path(service.page.__file__).parent / "static"


async def test_every_file_that_the_page_names_is_there_with_its_type(served: Served) -> None:
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


async def test_a_kept_file_is_asked_for_again_and_sent_only_if_it_changed(served: Served) -> None:
    first = await served.client.get("/assets/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await served.client.get("/assets/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await served.client.get("/assets/main.js", headers={"if-none-match": '"another"'})
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "..%2Fshell.py", "..%2F__init__.py", "%2Fetc%2Fpasswd", "main.js%00", "templates%2Fpage.html"],
)
async def test_no_other_file_can_be_read_by_its_path(name: str, served: Served) -> None:
    answer = await served.client.get(f"/assets/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")


async def test_every_link_to_an_operation_is_one(served: Served) -> None:
    page = (await served.client.get("/")).text
    document = (await served.client.get("/openapi.json")).json()
    known = {
        (tag, operation["operationId"])
        for methods in document["paths"].values()
        for operation in methods.values()
        for tag in operation["tags"]
    }
    linked = set(re.findall(r'href="docs#/(\w+)/(\w+)"', page))
    assert linked
    assert linked <= known
