"""Takes the pictures of docs/page.md: python .ci/page_pictures.py ADDRESS, of a server on the default artifact.

`make serve` starts one. Nobody should have asked it yet: the artifact's own test rows are asked here, and their labels
told, so that the charts of calibration and drift have something to show. Chromium takes the pictures, at a desk and on
a phone, in light and in dark.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from laplora.client import Client
from training.config import load_config
from training.data.section import load_splits

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def tell_labels(address: str) -> None:
    """Ask a server the default artifact's test rows, and tell it their true labels."""
    config = load_config(ROOT / "training" / "configs" / "fields-smollm2.yaml", [])
    splits = load_splits(config.data, seed=config.seed)
    with Client(address) as client:
        answers = client.predict([dict(example.fields) for example in splits.test])
        labels = [splits.task.labels[example.label] for example in splits.test]
        client.feedback(list(zip((str(answer.prediction_id) for answer in answers), labels, strict=True)))


def opened(browser: Browser, address: str, size: str, scheme: Scheme) -> Page:
    """Return a page at an address."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page.goto(address)
    return page


def playground(browser: Browser, address: str, size: str, scheme: Scheme) -> bytes:
    """Return the PNG of the playground with the answer to its first example."""
    page = opened(browser, address, size, scheme)
    page.locator("#example-list button").first.click()
    page.locator(".verdict").wait_for()
    if size == "phone":
        page.locator(".answer").evaluate("panel => scrollTo(0, panel.offsetTop - 12)")
    page.evaluate("document.activeElement.blur()")
    taken = page.screenshot()
    page.close()
    return taken


def feedback(browser: Browser, address: str, size: str, scheme: Scheme) -> bytes:
    """Return the PNG of the charts of calibration and drift."""
    page = opened(browser, f"{address.rstrip('/')}/#feedback", size, scheme)
    charts = page.locator(".series").first
    charts.locator("svg").last.wait_for()
    taken = charts.screenshot()
    page.close()
    return taken


def saved(taken: bytes, name: str) -> None:
    """Write a picture in few colours, which is a third of its size."""
    few = (
        Image.open(io.BytesIO(taken)).convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    few.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    tell_labels(sys.argv[1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in SCHEMES:
            for size in SIZES:
                saved(playground(browser, sys.argv[1], size, scheme), f"page_{size}_{scheme}")
            saved(feedback(browser, sys.argv[1], "desk", scheme), f"page_feedback_{scheme}")
        browser.close()
