"""Takes the pictures of docs/page.md: python .ci/page_pictures.py ADDRESS, of a server on the default artifact.

`make serve` starts one. Chromium takes them, at a desk and on a phone, in light and in dark.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def picture(browser: Browser, address: str, size: str, scheme: Literal["light", "dark"]) -> bytes:
    """Return the PNG of the playground with the answer to its first example."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page.goto(address)
    page.locator("#example-list button").first.click()
    page.locator(".verdict").wait_for()
    if size == "phone":
        page.locator(".answer").evaluate("panel => scrollTo(0, panel.offsetTop - 12)")
    page.evaluate("document.activeElement.blur()")
    taken = page.screenshot()
    page.close()
    return taken


if __name__ == "__main__":
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for size in SIZES:
            for scheme in SCHEMES:
                taken = Image.open(io.BytesIO(picture(browser, sys.argv[1], size, scheme))).convert("RGB")
                few = taken.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                few.save(FOLDER / f"page_{size}_{scheme}.png", optimize=True)
        browser.close()
