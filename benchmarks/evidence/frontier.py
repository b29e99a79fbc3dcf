"""The picture that decides for a user: the share accepted at 5 % against labels, made of results.json alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.evidence.page import figure, over, places_of
from benchmarks.evidence.plan import BUDGETS, LARGER, REPORTED, SMALL
from benchmarks.evidence.scores import TARGETS, Record

#: Each line: its meaning, base and method, and its colour (Okabe and Ito, darkened: told apart by the colour-blind).
LINES = (
    ("nothing trained, as served", SMALL, "served", "#00795a"),
    ("adapter, temperature scaling", SMALL, "temperature", "#52606d"),
    ("both together", SMALL, "pool", "#0063a6"),
    ("adapter of 90 % of labels", SMALL, "all_labels", "#b85c00"),
    ("both together, 0.5B", LARGER, "pool", "#a0417d"),
)
_SIDE, _HIGH, _LEFT, _TOP, _GAP, _ROW = 220, 200, 46, 62, 28, 22
_STYLE = """
text { font: 13px sans-serif; fill: #3d4a57 } .title { font-weight: bold; fill: #1b2733 }
.end { text-anchor: end } .middle { text-anchor: middle } .grid { stroke: #dde3e9 }
.line { fill: none; stroke-width: 2 } .wrong { fill: none; stroke: #d01c1c; stroke-width: 2 }
"""


def picture(records: Sequence[Record], tasks: Sequence[str] = REPORTED) -> str:
    """Return the picture as SVG, with a panel for each task that has answers at more than one number of labels.

    Without such a task it is empty.
    """
    places = sorted(places_of(records).values(), key=lambda place: place.name)
    by_task = {task: [place for place in places if place.name[0] == task] for task in tasks}
    panels = {task: of for task, of in by_task.items() if len({place.name[2] for place in of}) > 1}
    if not panels:
        return ""
    width = max(_LEFT + len(panels) * (_SIDE + _GAP), 700)
    parts, told = ['<text class="title" x="10" y="20">Answers accepted at a target error of 5 %</text>'], list[str]()
    for number, (task, of) in enumerate(panels.items()):
        parts.append(f'<g transform="translate({_LEFT + number * (_SIDE + _GAP)},{_TOP})">')
        parts += [f'<text class="title" y="-14">{of[0].title}</text>', *_axes(named=number == 0)]
        for meaning, base, method, colour in LINES:
            path, dots = list[str](), list[str]()
            for place in (place for place in of if place.name[1] == base and method in place.methods):
                share, error = (place.mean(method, figure(name)) or 0.0 for name in ("accepted", "accepted_error"))
                x, y = f"{_x(place.name[2]):.1f}", f"{_HIGH * (1 - share):.1f}"
                path.append(f"{x},{y}")
                dots += _dot(x, y, colour, error > min(TARGETS))
                told.append(f"{task}, {meaning}, {place.name[2]} labels: {share:.0%}.")
            parts += [f'<polyline class="line" stroke="{colour}" points="{" ".join(path)}"/>', *dots]
        parts.append("</g>")
    bottom = _TOP + _HIGH + 58
    parts.append(f'<text class="middle" x="{width / 2:.0f}" y="{bottom - 20}">labels</text>')
    key: dict[str, list[str]] = {}
    for meaning, base, method, colour in LINES:
        of = [place for places in panels.values() for place in places if place.name[1] == base]
        if (passes := over(of, method, figure("forwards"))) is not None:
            meaning = f"{meaning}: {passes:.3g} pass{'' if passes == 1 else 'es'} an answer"
            key[meaning] = [f'<path class="line" stroke="{colour}" d="M0 0 h24"/>', *_dot("12", "0", colour, False)]
    key["mean error among the accepted above 5 %"] = _dot("12", "0", "none", True)
    for number, (meaning, mark) in enumerate(key.items()):
        at = f"{10 + number % 2 * width / 2:.0f},{bottom + number // 2 * _ROW}"
        parts.append(f'<g transform="translate({at})">{"".join(mark)}<text x="32" y="4">{meaning}</text></g>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 3 * _ROW}" role="img">'
    words = f"<title>Share accepted by number of labels</title>\n<desc>{' '.join(told)}</desc>\n<style>{_STYLE}</style>"
    return "\n".join([head, f'{words}<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def _dot(x: str, y: str, colour: str, wrong: bool) -> list[str]:
    """Return a point, in a ring where too many of the accepted are wrong."""
    ring = f'<circle class="wrong" cx="{x}" cy="{y}" r="7"/>'
    return [f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>', *([ring] if wrong else [])]


def _axes(named: bool) -> list[str]:
    parts = [f'<text class="middle" x="{_x(size):.1f}" y="{_HIGH + 18}">{size:,}</text>' for size in BUDGETS]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _HIGH * (1 - share)
        parts.append(f'<path class="grid" d="M0 {y} h{_SIDE}"/>')
        parts += [f'<text class="end" x="-6" y="{y + 4}">{share:.0%}</text>'] if named else []
    return parts


def _x(labels: int) -> float:
    return 12 + (_SIDE - 30) * math.log(labels / BUDGETS[0], BUDGETS[-1] / BUDGETS[0])
