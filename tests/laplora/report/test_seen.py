"""The page of a report in a real browser: for everybody, in light, dark, print and on a phone, and without a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from browser import DESK, PHONE, chromium, needs_chromium
from playwright.sync_api import Browser, Page
from report_records import report

from laplora.report.page import html
from laplora.report.records import Slicing
from laplora.report.verdict import judge

pytestmark = [needs_chromium, pytest.mark.process]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with every part, words that cannot be broken and markup among its texts."""
    long = "https://example.org/" + "x" * 200
    one = replace(
        report(
            labels=["a" * 60, "<script>document.title = 'ran'</script>"],
            texts=[long, "<img src=x onerror=\"document.title = 'ran'\">"] * 60,
            references=[long] * 120,
            slices=[Slicing("field kind", ["b" * 60, "chat"], torch.arange(120) % 2)],
        ),
        title="t" * 80,
        provenance={"base weights": "sha256:" + "0" * 64},
        configuration="x" * 300,
    )
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html(one, judge(one)), encoding="utf-8")
    return path.as_uri()


def opened(browser: Browser, address: str, complaints: list[str], **context: Any) -> Page:
    page = browser.new_context(**context).new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: None if request.url == address else complaints.append(request.url))
    page.goto(address)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_wrong(browser: Browser, address: str, scheme: str, viewport: dict[str, int]) -> None:
    # axe is put into the page from outside, which its policy would not allow.
    page = opened(browser, address, [], viewport=viewport, color_scheme=scheme, bypass_csp=True)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_width_makes_the_page_scroll_sideways(browser: Browser, address: str, width: int) -> None:
    page = opened(browser, address, [], viewport={"width": width, "height": 844})
    inner, outer = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert inner <= outer == width


def test_the_page_asks_for_nothing_runs_nothing_and_its_policy_stops_nothing(browser: Browser, address: str) -> None:
    complaints: list[str] = []
    page = opened(browser, address, complaints, viewport=DESK)
    assert page.title().endswith(": report")
    assert page.evaluate("document.scripts.length") == 0
    # The style sheet is the one that the policy names.
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "1080px"
    assert complaints == []


def test_dark_is_dark_and_print_is_light(browser: Browser, address: str) -> None:
    def lightness(page: Page) -> Any:
        """Return how light the page and its text are, 0 to 1, and a chart's axis."""
        return page.evaluate("""[[document.body, "backgroundColor"], [document.body, "color"],
            [document.querySelector("svg .axis"), "stroke"]].map(([element, name]) =>
            getComputedStyle(element)[name].match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765)""")

    light = lightness(opened(browser, address, [], color_scheme="light"))
    page = opened(browser, address, [], color_scheme="dark")
    dark = lightness(page)
    page.emulate_media(media="print")
    printed = lightness(page)
    assert light[0] == printed[0] == 1
    assert dark[0] < 0.2 < 0.6 < dark[2]
    assert printed[1] == 0
    assert max(light[1], light[2], printed[2]) < 0.5 < 0.8 < dark[1]
