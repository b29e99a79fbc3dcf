"""Draw README's picture: how reliable the default artifact's probabilities are before (MAP) and after (Laplace).

    python -m benchmarks.before_after

The charts are those of a report, of the artifact's ``report/evaluation.json``.
"""

from __future__ import annotations

import json
from html import escape
from types import SimpleNamespace
from typing import Any

from benchmarks.harness.provenance import ARTIFACT, ROOT
from laplora.report.charts import Style, reliability_charts
from laplora.report.drawing import svg

PICTURE = ROOT / "docs" / "pictures" / "before_after.svg"
_WIDTH, _HEADING = 460, 46
_SAYS = """<title>Reliability before and after</title>
<desc>The accuracy in each bin of confidence: before (MAP) and after (Laplace).</desc>
"""
#: On white, whatever page it is on.
_STYLE = """
text { font: 13px sans-serif; fill: #52606d } .name { fill: #1b2733 } .title { font-size: 15px; font-weight: bold }
.end { text-anchor: end } .middle { text-anchor: middle } path { fill: none }
.grid { stroke: #d5dbe1 } .axis { stroke: #52606d } .line { stroke: #1b2733 } .guide { stroke-dasharray: 5 4 }
.bar { stroke: #fff; stroke-width: .8 } .map { fill: #d68a5e } .served { fill: #6294c6 } .count { fill: #adb5be }
.over { fill: #7b2d8e; fill-opacity: .28; stroke: #7b2d8e } .under { fill: #00796b; fill-opacity: .28; stroke: #00796b }
"""


def picture(methods: dict[str, Any]) -> str:
    """Return the picture as SVG, of metrics by method."""
    report: Any = SimpleNamespace(methods=methods)
    served: list[tuple[str, Style]] = [("map", "map"), ("laplace", "served")]
    parts, bottom = [], 0
    for column, (method, colour) in enumerate(served):
        left, bottom = column * _WIDTH, _HEADING
        charts = reliability_charts(report, method, colour)
        title = f'<text class="name title middle" x="{left + _WIDTH / 2:g}" y="28">{escape(charts[0].title)}</text>'
        parts.append(title)
        for chart in charts:
            place = f'<svg x="{left}" y="{bottom}" width="{_WIDTH}" height="{chart.height}" '
            parts.append(svg(chart, len(parts)).replace("<svg ", place, 1))
            bottom += chart.height
    width = _WIDTH * len(served)
    key = "violet: overconfident · green: underconfident · whiskers: 95 % interval · dashes: perfect"
    parts.append(f'<text class="middle" x="{width / 2:g}" y="{bottom + 16}">{key}</text>')
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 30}" role="img">'
    style = f'{_SAYS}<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([begin, style, *parts, "</svg>", ""])


def recorded() -> dict[str, Any]:
    """Return the default artifact's metrics by method."""
    methods: dict[str, Any] = json.loads((ARTIFACT / "report" / "evaluation.json").read_text(encoding="utf-8"))
    return methods


if __name__ == "__main__":
    PICTURE.write_text(picture(recorded()), encoding="utf-8")
