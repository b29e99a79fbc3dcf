"""A real browser on a real server: Debian's Chromium by Playwright, which fetches nothing itself."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Browser, Page, expect, sync_playwright
from programs import needs, program
from server_process import GIVE_UP_S

needs_chromium = needs("chromium")
SECTIONS = ("playground", "artifact", "jobs", "feedback", "connect", "server")
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
_FLAGS = ["--no-sandbox", "--disable-gpu"]
# However busy the machine is.
expect.set_options(timeout=GIVE_UP_S * 1000)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """The page, opened, and everything that the browser complained of and asked for since."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def show(self, section: str) -> None:
        """Show a section, as a click in the navigation does."""
        self.page.locator(f"nav a[href='#{section}']").click()
        expect(self.page.locator(f"#{section}")).to_be_visible()

    def ask(self, text: str) -> None:
        """Ask the playground, and wait for the answer."""
        self.page.get_by_label("text", exact=True).fill(text)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        expect(self.page.locator("#answer[aria-busy]")).to_have_count(0)
        expect(self.page.locator(".verdict")).to_be_visible()

    def give_key(self, key: str) -> None:
        """Type an API key into the form that asks for one."""
        self.page.get_by_label("This server asks for an API key").fill(key)
        self.page.get_by_role("button", name="Use it").click()


def choose(page: Page, content: bytes, name: str = "r.jsonl", kind: str = "") -> None:
    """Choose a file of rows for a job."""
    page.get_by_label("File of rows").set_input_files({"name": name, "mimeType": kind, "buffer": content})


def posted(command: str) -> tuple[Any, Any]:
    """Run what a curl command of the page says; return its JSON body and the answer."""
    words = shlex.split(command.replace("\\\n", ""))
    body = words[words.index("-d") + 1]
    headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    answer = httpx.post(words[2], content=body, headers=headers, timeout=None)
    assert answer.status_code == 200, answer.text
    return json.loads(body), answer.json()


def printed(program: str) -> str:
    with contextlib.redirect_stdout(out := io.StringIO()):
        exec(program, {})
    return out.getvalue().strip()


@contextmanager
def visit(browser: Browser, address: str, **context: Any) -> Iterator[Visit]:
    """Yield the page at an address, ready; afterwards the browser asked no other host, and its policy stopped nothing.

    ``context`` goes to the browser's context: ``viewport``, ``color_scheme`` and the like.
    """
    address = address.rstrip("/")
    opened = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **context})
    opened.set_default_timeout(GIVE_UP_S * 1000)
    visited = Visit(opened.new_page(), address)
    visited.page.on("console", lambda message: visited.complaints.append(message.text))
    visited.page.on("pageerror", lambda error: visited.complaints.append(str(error)))
    visited.page.on("request", lambda request: visited.hosts.add(urlsplit(request.url).netloc))
    try:
        visited.page.goto(f"{address}/")
        expect(visited.page.locator("#state")).to_have_text("ready")
        yield visited
    finally:
        opened.close()
    assert visited.hosts <= {urlsplit(address).netloc, ""}  # "" is a file that the page itself holds
    # A refused request is in the console, whatever the page makes of it. Nothing else may be.
    failed = [said for said in visited.complaints if not said.startswith("Failed to load resource")]
    assert failed == []
