"""Draw README's picture: the share of answers that are accepted, by an adapter, the obvious baseline and laplora.

    python -m benchmarks.before_after

Target error rate 5 %, means over seeds and draws of docs/results/evidence.json, 450 labels, SmolLM2-135M.
"""

from __future__ import annotations

from benchmarks.evidence.page import Place, figure, places_of, wrongly
from benchmarks.evidence.plan import LABELS, REPORTED, SEEDS, SMALL
from benchmarks.evidence.scores import REFERENCE, SERVED, read
from benchmarks.harness.provenance import ROOT

PICTURE = ROOT / "docs" / "pictures" / "before_after.svg"
_LEFT, _WIDTH, _BAR, _STEP, _TOP = 130, 420, 11, 46, 44
_STYLE = """
text { font: 13px sans-serif; fill: #52606d } .name { fill: #1b2733 } .end { text-anchor: end }
.title { font-weight: bold }
.temperature { fill: #9aa5b1 } .logistic_mean { fill: #6b7c5a } .served { fill: #2f6fb0 }
.wrong { fill: #b3261e } .rest { fill: #eef1f4 }
"""
BARS = {
    REFERENCE: "adapter with temperature scaling",
    "logistic_mean": "logistic regression on states",
    SERVED: "laplora, nothing trained",
}


def measured() -> list[Place]:
    """Return the main table's tasks whose reference and default have all seeds."""
    places = places_of(read())
    every = [places[name] for task in REPORTED if (name := (task, SMALL, LABELS)) in places]
    return [
        one
        for one in every
        if all(len({r["seed"] for r in one.methods.get(name, ())}) == len(SEEDS) for name in (REFERENCE, SERVED))
    ]


def picture(tasks: list[Place]) -> str:
    """Return the picture as SVG, of what ``measured`` returns."""
    ordered = sorted(tasks, key=lambda one: -(one.mean(SERVED, figure("accepted")) or 0.0))
    parts = ['<text class="title" x="10" y="20">Answers accepted at a target error of 5 %</text>']
    for number, place in enumerate(ordered):
        top = _TOP + number * _STEP
        parts.append(f'<text class="name end" x="{_LEFT - 8}" y="{top + 21}">{place.title}</text>')
        for line, kind in enumerate(name for name in BARS if name in place.methods):
            share, wrong = (place.mean(kind, value) or 0.0 for value in (figure("accepted"), wrongly()))
            y, width = top + line * _BAR, _WIDTH * share
            for of, x, wide in (
                ("rest", _LEFT, float(_WIDTH)),
                (kind, _LEFT, width - _WIDTH * wrong),
                ("wrong", _LEFT + width - _WIDTH * wrong, _WIDTH * wrong),
            ):
                parts.append(f'<rect class="{of}" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_BAR - 1}"/>')
        parts.append(f'<text x="{_LEFT + _WIDTH + 8}" y="{top + 21}">{_change(place)}</text>')
    bottom = _TOP + len(ordered) * _STEP + 6
    for number, (kind, meaning) in enumerate({**BARS, "wrong": "accepted and wrong"}.items()):
        x, y = 10 + number % 2 * 300, bottom + number // 2 * 20
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="12" height="12"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 11}">{meaning}</text>')
    desc = " ".join(f"{place.title}: {_change(place)}." for place in ordered)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 130} {bottom + 44}" role="img">'
    words = f"<title>Share of answers accepted</title>\n<desc>{desc}</desc>\n<style>{_STYLE}</style>"
    return "\n".join([head, f'{words}<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def _change(place: Place) -> str:
    before, after = (100 * (place.mean(name, figure("accepted")) or 0.0) for name in (REFERENCE, SERVED))
    return f"{before:.0f} to {after:.0f} %"


if __name__ == "__main__":
    PICTURE.write_text(picture(measured()), encoding="utf-8")
