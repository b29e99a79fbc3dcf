"""Draw README's picture: which answers of the default artifact's test rows are accepted, before and after.

    python -m benchmarks.before_after

Before: the fine-tuned model alone, whose every answer is used. After: as served, at a target error rate of 5 %. The
figures are those of the artifact's ``report/evaluation.json``.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.harness.provenance import ARTIFACT, ROOT

PICTURE = ROOT / "docs" / "pictures" / "before_after.svg"
_LEFT, _WIDTH, _BAR, _STEP = 20, 680, 30, 84
#: On white, whatever page it is on.
_STYLE = """
text { font: 14px sans-serif; fill: #52606d } .name { fill: #1b2733; font-weight: bold } .end { text-anchor: end }
.right { fill: #6294c6 } .wrong { fill: #b3261e } .person { fill: #d5dbe1 }
"""


def shares(accepted: dict[str, int], rows: int) -> str:
    """Return the share that is accepted, and the error among it, in words."""
    return f"{accepted['rows'] / rows:.1%} accepted, {accepted['wrong'] / accepted['rows']:.1%} of them wrong".replace(
        "%", " %"
    )


def both(methods: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Return what is accepted before and after, of metrics by method."""
    (after,) = (values["accepted"] for values in methods.values() if "accepted" in values)
    alone = methods["map"]
    return {"rows": alone["rows"], "wrong": round(alone["rows"] * (1 - alone["accuracy"]))}, after


def picture(methods: dict[str, Any]) -> str:
    """Return the picture as SVG, of metrics by method."""
    rows, parts = methods["map"]["rows"], []
    titles = ("Before: the fine-tuned model alone", "After: served by laplora, target error 5 %")
    for number, (title, accepted) in enumerate(zip(titles, both(methods), strict=True)):
        top = 16 + number * _STEP
        parts.append(f'<text class="name" x="{_LEFT}" y="{top + 12}">{title}</text>')
        parts.append(f'<text class="end" x="{_LEFT + _WIDTH}" y="{top + 12}">{shares(accepted, rows)}</text>')
        counts = {
            "right": accepted["rows"] - accepted["wrong"],
            "wrong": accepted["wrong"],
            "person": rows - accepted["rows"],
        }
        left = float(_LEFT)
        for kind, count in counts.items():
            width = _WIDTH * count / rows
            place = f'x="{left:.1f}" y="{top + 22}" width="{width:.1f}" height="{_BAR}"'
            parts.append(f'<rect class="{kind}" {place}/>')
            left += width
    bottom = 16 + 2 * _STEP
    key = {"right": "accepted and right", "wrong": "accepted and wrong", "person": "sent to a person"}
    for number, (kind, meaning) in enumerate(key.items()):
        x = _LEFT + 170 * number
        parts.append(f'<rect class="{kind}" x="{x}" y="{bottom}" width="12" height="12"/>')
        parts.append(f'<text x="{x + 18}" y="{bottom + 11}">{meaning}</text>')
    said = " ".join(f"{title}: {shares(one, rows)}." for title, one in zip(titles, both(methods), strict=True))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + 2 * _LEFT} {bottom + 28}" role="img">'
    words = f"<title>Answers accepted before and after</title>\n<desc>{said}</desc>\n<style>{_STYLE}</style>"
    return "\n".join([head, f'{words}<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def recorded() -> dict[str, Any]:
    """Return the default artifact's metrics by method."""
    methods: dict[str, Any] = json.loads((ARTIFACT / "report" / "evaluation.json").read_text(encoding="utf-8"))
    return methods


if __name__ == "__main__":
    PICTURE.write_text(picture(recorded()), encoding="utf-8")
