"""What the page is made of: its own files alone, each there, none from elsewhere, none by a path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from serving import Served, code

import service.page
from service.page.shell import read_assets

pytestmark = pytest.mark.anyio

STATIC = Path(service.page.__file__).parent / "static"


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
