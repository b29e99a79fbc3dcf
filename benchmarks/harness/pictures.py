"""Figures as small PNG files."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def save_picture(figure: Figure, path: Path) -> Path:
    """Write a figure with few colours, which makes it a third of the size, and return its path."""
    raw = io.BytesIO()
    figure.savefig(raw, dpi=100, format="png")
    with Image.open(raw) as picture:
        # By coverage: the colours of single points count as much as those of areas.
        few = picture.convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path
