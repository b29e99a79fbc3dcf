"""The report's colours are told apart by everybody: in light, dark and print, by whoever is colour-blind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import laplora.report

STYLE = (Path(laplora.report.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
#: Colours that stand in one chart and mean something by their colour alone, or by little else.
TOGETHER = [("right", "wrong"), ("map", "served"), ("map", "other"), ("served", "other"), ("over", "under")]
#: From linear RGB to what an eye without one kind of cones sees: Machado, Oliveira and Fernandes 2009, severity 1.
BLINDNESS = {
    "none": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


def palettes() -> dict[str, dict[str, str]]:
    """Return the colours by name of each medium; dark and print replace those of light that they name."""
    light, dark, printed = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in (light, dark, printed)]
    return dict(zip(("light", "dark", "print"), (found[0], found[0] | found[1], found[0] | found[2]), strict=True))


def lab(colour: str, blindness: str) -> torch.Tensor:
    """Return a colour's CIE L*a*b* (D65), as it is seen."""
    values = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
    linear = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = (torch.tensor(BLINDNESS[blindness], dtype=torch.float64) @ linear).clamp(0, 1)
    to_xyz = torch.tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], dtype=torch.float64
    )
    relative = to_xyz @ seen / torch.tensor([0.9505, 1.0, 1.089], dtype=torch.float64)
    f = torch.where(relative > 0.008856, relative ** (1 / 3), 7.787 * relative + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("medium", ["light", "dark", "print"])
def test_colours_that_stand_together_differ(medium: str, blindness: str) -> None:
    """A distance of 20 is several times what is just noticed (about 2)."""
    colours = palettes()[medium]
    for one, other in TOGETHER:
        distance = float((lab(colours[one], blindness) - lab(colours[other], blindness)).norm())
        assert distance > 20, f"{one} and {other}: {distance:.0f}"
