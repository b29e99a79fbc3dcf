"""The report of measured rows: what it is told of answers, where one label is right and where several may be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from laplora.answers.evaluation import measure
from laplora.answers.labels import LabelNames
from laplora.answers.reporting import MeasuredRows, measured_report
from laplora.report.page import html
from laplora.report.records import Report
from laplora.report.verdict import judge

NAMES = LabelNames(("news", "sport", "weather"), several=True)
REVIEW = SimpleNamespace(target_risk=0.05, threshold=0.3, guarantee="empirical")
MANIFEST: Any = SimpleNamespace(
    recommended=SimpleNamespace(predictive="laplace", reason="it was better"),
    predictives={"laplace": SimpleNamespace(thresholds=SimpleNamespace(review=REVIEW))},
    calibration=SimpleNamespace(coverage=0.9, rows=150),
    familiarity=None,
)


def measured(count: int, *, averaged: bool = False) -> Report:
    """Return the report of inputs with three labels each, of which several may be right."""
    taken = MeasuredRows()
    for i in range(count):
        present = dict(zip(NAMES.names, (0.9, 0.2, 0.6 if i % 2 else 0.4), strict=True))
        answer = {
            "probs": present, "map_probs": present, "probs_std": None, "score": 0.6, "tokens": 5,
            "decision": "review" if i % 4 == 1 else "accept", "prediction_set": ["news"], "uncertainty": None,
            "flags": [],
        }  # fmt: skip
        taken.add(f"line {i + 1}", (0, 2) if i % 2 and i % 10 != 1 else (0,), answer, {"text": f"text {i}"})
    pairs = [(answer["probs"], None) for answer in taken.answers]
    how = SimpleNamespace(bins=15, resamples=10, seed=0)
    methods = measure([{"map": pair, "laplace": pair} for pair in pairs], taken.truths, names=NAMES, how=how)
    if averaged:
        methods |= {f"{name}_order_average": values for name, values in methods.items()}
    return measured_report(
        taken, MANIFEST, methods, names=NAMES, predictive="laplace", averaged=averaged, title="tags",
        measured_on="rows", fields=("text",), unfamiliar=None, notes=[], provenance={}, texts=True,
    )  # fmt: skip


def test_where_several_labels_may_be_right_each_is_a_question_of_its_own() -> None:
    report = measured(40)
    page = html(report, judge(report))
    assert len(report.rows) == 3 * 40
    assert report.questions == 3
    assert judge(report).kind not in ("ship", "review")
    assert report.labels == ("absent", "present")
    # Wrong: weather, said to be present of the rows 1, 11, 21 and 31, which it is not.
    assert report.rows.wrong.nonzero()[:, 0].tolist() == [3 * i + 2 for i in (1, 11, 21, 31)]
    assert report.rows.references[5] == "line 2, weather"
    assert report.rows.review.nonzero()[:, 0].tolist() == [3 * i + k for i in range(1, 40, 4) for k in range(3)]
    for said in ("Rows by “label”", "<bdi>weather</bdi>", "question of its own", "text 11"):
        assert said in page
    # An average over orders is the method that is judged.
    averaged = measured(40, averaged=True)
    assert averaged.served == "laplace_order_average"
    assert "order average" in html(averaged, judge(averaged))
