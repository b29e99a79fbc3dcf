"""A report as one HTML file that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.errors import ConfigError, install
from laplora.metrics.noise import ece_limit
from laplora.report.charts import cost_chart, reliability_charts, risk_coverage_chart, uncertainty_charts
from laplora.report.drawing import svg
from laplora.report.names import WORDS, as_sentence, display_name
from laplora.report.records import Report
from laplora.report.rows import (
    commonest_confusions,
    confusion_matrix,
    label_groups,
    most_uncertain_rows,
    slice_groups,
    suspected_rows,
    worst_rows,
)
from laplora.report.verdict import Verdict, operating_point, percent

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"

#: Heading of a column -> (figure of a method, +1 where higher is better and -1 where lower is, what it means).
_COLUMNS: Mapping[str, tuple[str, int, str]] = {
    "accuracy": ("accuracy", 1, "share of answers that are the true label"),
    "NLL": ("nll", -1, "mean negative log-likelihood, nats: how good the probabilities are"),
    "KL": ("kl", -1, "NLL less the entropy of the labels, which are probabilities, nats: 0 if answers equal them"),
    "MAE": ("mae", -1, "mean distance of the answer from the true label, in places of the labels' order"),
    "RPS": ("rps", -1, "ranked probability score: squared error of the cumulated probabilities in that order, 0 to 1"),
    "ECE": ("ece", -1, "expected calibration error: how far confidence is from accuracy, over 15 bins of confidence"),
    "Brier": ("brier", -1, "squared error of the probabilities, 0 to 2"),
    "AUROC": ("auroc_error", 1, "how well the uncertainty ranks the mistakes, 0.5 is chance"),
    "AURC": (
        "aurc",
        -1,
        "area under the risk-coverage curve: mean error rate over all shares of answers kept, the surest first",
    ),
}


def html(report: Report, verdict: Verdict) -> str:
    """Return a report's page, with what ``judge`` says of it.

    Raises:
        ConfigError: without Jinja: the extra ``report``.
    """
    numbers = iter(range(1, 1000))
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")

    def draw(chart: Any) -> Any:
        from markupsafe import Markup

        return Markup(svg(chart, next(numbers)))  # every text in it is escaped

    diagrams = [reliability_charts(report, "map", "map")] if report.shows_map else []
    if report.served != "map":
        diagrams.append(reliability_charts(report, report.served, "served"))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            style=style,
            style_hash="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            verdict=verdict,
            operating_point=operating_point(report),
            columns=_columns(report),
            table=_table(report),
            diagrams=diagrams,
            risk=risk_coverage_chart(report),
            cost=None if report.costs is None else cost_chart(report),
            uncertainty=uncertainty_charts(report),
            matrix=confusion_matrix(report),
            confusions=commonest_confusions(report),
            labels=label_groups(report),
            slices=list(slice_groups(report)),
            worst=worst_rows(report),
            suspects=suspected_rows(report),
            uncertain=most_uncertain_rows(report),
            draw=draw,
        )
    )


def _columns(report: Report) -> dict[str, tuple[str, int, str]]:
    """Return the columns of the report's figures: some are only of soft labels, or of ordered ones."""
    return {name: of for name, of in _COLUMNS.items() if of[0] in report.methods[report.served]}


def _table(report: Report) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Return each method, and of each column the value, its interval and whether it is best."""
    cells: dict[str, list[tuple[str, str, bool]]] = {method: [] for method in report.methods}
    for key, sign, _ in _columns(report).values():
        texts = {m: "–" if values.get(key) is None else f"{values[key]:.3f}" for m, values in report.methods.items()}
        printed = [sign * float(text) for text in texts.values() if text != "–"]
        for method, text in texts.items():
            best = key != "ece" and text != "–" and len(printed) > 1 and sign * float(text) == max(printed)
            bounds = report.methods[method]["intervals"].get(key)
            beneath = f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
            if key == "ece":  # some stored results have an interval of it
                beneath = f"chance: to {ece_limit(report.methods[method]['reliability']):.3f}"
            cells[method].append((text, beneath, best))
    return list(cells.items())


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError:
        raise ConfigError(f"a report needs Jinja: {install('report')}") from None
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "name": display_name,
        "sentence": as_sentence,
        "words": lambda name: WORDS.get(name, ""),
    }
    return environment
