"""Draw README's picture: the share of answers that are accepted on eleven tasks, before and after.

    python -m benchmarks.before_after

Before: a fine-tuned adapter with temperature scaling. After: the pool with the adapter. Target error rate 5 %, means
over seeds and draws of ``benchmarks/experts/results.json``.
"""

from __future__ import annotations

import json
from statistics import fmean

from benchmarks.experts.records import cells_of, error_among_accepted
from benchmarks.harness.provenance import ROOT

PICTURE = ROOT / "docs" / "pictures" / "before_after.svg"
EXPERTS = ROOT / "benchmarks" / "experts" / "results.json"
_LEFT, _WIDTH, _BAR, _STEP, _TOP = 110, 420, 11, 34, 44
_STYLE = """
text { font: 13px sans-serif; fill: #52606d } .name { fill: #1b2733 } .end { text-anchor: end }
.title { font-weight: bold }
.before { fill: #9aa5b1 } .after { fill: #2f6fb0 } .wrong { fill: #b3261e } .rest { fill: #eef1f4 }
"""
_BARS = {"temperature": "before", "pool": "after"}


def accepted_by_task() -> dict[str, dict[str, tuple[float, float]]]:
    """Return by task and bar the mean share of answers that are accepted, and of these that are wrong."""
    by_task: dict[str, dict[str, tuple[float, float]]] = {}
    for (method, task), records in cells_of(json.loads(EXPERTS.read_text(encoding="utf-8"))).items():
        if method in _BARS:
            shares = fmean(one["accepted"] for one in records), error_among_accepted(records) or 0.0
            by_task.setdefault(task, {})[_BARS[method]] = shares
    return by_task


def picture(tasks: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Return the picture as SVG, of what ``accepted_by_task`` returns."""
    ordered = sorted(tasks.items(), key=lambda task: -task[1]["after"][0])
    parts = ['<text class="title" x="10" y="20">Answers accepted at a target error of 5 %</text>']
    for number, (task, bars) in enumerate(ordered):
        top = _TOP + number * _STEP
        parts.append(f'<text class="name end" x="{_LEFT - 8}" y="{top + 15}">{task}</text>')
        for place, kind in enumerate(("before", "after")):
            share, wrong = bars[kind]
            y, width = top + place * _BAR, _WIDTH * share
            for of, x, wide in (
                ("rest", _LEFT, float(_WIDTH)),
                (kind, _LEFT, width * (1 - wrong)),
                ("wrong", _LEFT + width * (1 - wrong), width * wrong),
            ):
                parts.append(f'<rect class="{of}" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{_BAR - 1}"/>')
        parts.append(f'<text x="{_LEFT + _WIDTH + 8}" y="{top + 15}">{_change(bars)}</text>')
    bottom = _TOP + len(ordered) * _STEP + 6
    key = {"before": "adapter with temperature scaling", "after": "laplora", "wrong": "accepted and wrong"}
    for x, (kind, meaning) in zip((10, 262, 350), key.items(), strict=True):
        parts.append(f'<rect class="{kind}" x="{x}" y="{bottom}" width="12" height="12"/>')
        parts.append(f'<text x="{x + 18}" y="{bottom + 11}">{meaning}</text>')
    desc = " ".join(f"{task}: {_change(bars)}." for task, bars in ordered)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 130} {bottom + 24}" role="img">'
    words = f"<title>Share of answers accepted before and after</title>\n<desc>{desc}</desc>\n<style>{_STYLE}</style>"
    return "\n".join([head, f'{words}<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def _change(bars: dict[str, tuple[float, float]]) -> str:
    return f"{100 * bars['before'][0]:.0f} to {100 * bars['after'][0]:.0f} %"


if __name__ == "__main__":
    PICTURE.write_text(picture(accepted_by_task()), encoding="utf-8")
