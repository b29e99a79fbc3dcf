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


def opened(browser: Browser, address: str, **context: Any) -> Page:
    page = browser.new_context(**context).new_page()
    page.goto(address)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_wrong(browser: Browser, address: str, scheme: str, viewport: dict[str, int]) -> None:
    # axe is put into the page from outside, which its policy would not allow.
    page = opened(browser, address, viewport=viewport, color_scheme=scheme, bypass_csp=True)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_no_width_makes_the_page_scroll_sideways_and_its_policy_stops_no_style(browser: Browser, address: str) -> None:
    for width in (390, 768, 1280):
        page = opened(browser, address, viewport={"width": width, "height": 844})
        inner, outer = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert inner <= outer == width
    assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "1080px"
    assert page.title().endswith(": report"), "no text of a row ran"


def test_dark_is_dark_and_print_is_light(browser: Browser, address: str) -> None:
    def lightness(page: Page) -> Any:
        """Return how light the page, its text and a chart's axis are, 0 to 1."""
        return page.evaluate("""[["body", "backgroundColor"], ["body", "color"], ["svg .axis", "stroke"]].map(
            ([where, name]) => getComputedStyle(document.querySelector(where))[name].match(/[0-9.]+/g).slice(0, 3)
            .reduce((sum, part) => sum + Number(part), 0) / 765)""")

    page = opened(browser, address, color_scheme="dark")
    (paper, text, axis), _ = lightness(page), page.emulate_media(media="print")
    assert paper < 0.2 < 0.6 < axis
    assert text > 0.8
    paper, text, axis = lightness(page)
    assert (paper, text) == (1, 0)
    assert axis < 0.5
