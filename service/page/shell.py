"""The page's HTML, rendered from its templates, and the files that it loads, all held in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from laplora.report.names import WORDS

_HERE = Path(__file__).parent
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page.

    Attributes:
        etag: changes with the content, in quotes as HTTP writes it.
    """

    content: bytes
    media_type: str
    etag: str


def render_page() -> str:
    """Return the page's HTML; it is the same for everybody."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(words=WORDS)


def read_assets() -> dict[str, Asset]:
    """Return the files that the page loads, by name. A name that is not among them is no path to look up."""
    assets = {}
    for path in sorted((_HERE / "static").iterdir()):
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        assets[path.name] = Asset(content, _MEDIA_TYPES[path.suffix], etag)
    return assets
