"""What POST /evaluate says of a method's NLL beside temperature scaling's: the difference, with a paired interval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from laplora.answers.evaluation import MethodRow, accepted_rows, measure
from laplora.answers.labels import LabelNames, Truth
from laplora.answers.reporting import MeasuredRows, measured_report
from laplora.decisions.thresholds import ReviewRule
from laplora.metrics.noise import share_interval
from laplora.report.page import html
from laplora.report.records import Report
from laplora.report.verdict import judge
from service.http.schemas.evaluate import EvaluateOptions, MethodMetrics

ROWS = 60
TWO = LabelNames(("no", "yes"))
HOW = EvaluateOptions(resamples=400)


def rows_of(shift: float) -> list[dict[str, MethodRow]]:
    """Inputs of very different loss, on all of which ``laplace`` is some ``shift`` nats of the logit surer."""
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(ROWS, generator=g, dtype=torch.float64)

    def probs(logit: torch.Tensor) -> list[float]:
        yes = float(logit.sigmoid())
        return [1 - yes, yes]

    methods = {"map": logits + 1, "temperature": logits, "laplace": logits + shift * logits.sign()}
    return [{name: (probs(of[i]), None) for name, of in methods.items()} for i in range(ROWS)]


def truths() -> list[Truth]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (ROWS,), generator=g).tolist()


def test_the_difference_is_paired_and_that_of_the_two_nlls() -> None:
    rows = rows_of(0.1)
    found = measure(rows, truths(), names=TWO, how=HOW)
    over = found["laplace"]["over_temperature"]
    assert over["difference"] == pytest.approx(found["laplace"]["nll"] - found["temperature"]["nll"])
    assert over["low"] < over["difference"] < over["high"]
    low, high = found["laplace"]["intervals"]["nll"]
    assert over["high"] - over["low"] < (high - low) / 5
    assert MethodMetrics.model_validate(found["laplace"]).over_temperature is not None
    # Temperature scaling is not compared with itself, nor anything without it.
    assert found["temperature"]["over_temperature"] is None
    without = [{name: row[name] for name in ("map", "laplace")} for row in rows]
    assert all(of["over_temperature"] is None for of in measure(without, truths(), names=TWO, how=HOW).values())


def test_accepted_answers_are_counted_with_their_mistakes() -> None:
    none = accepted_rows([("review", [0.9, 0.1])] * 2, [0, 1], TWO)
    assert none == {"rows": 0, "share": 0, "wrong": 0, "error_rate": None, "interval": None}
    # The third answer, to a question with one choice, is wrong, and the last is left to a person.
    rows = [("accept", [0.9, 0.1]), ("accept", [0.2, 0.8]), ("accept", [1.0])]
    some = accepted_rows([*rows, ("review", [0.9, 0.1])], [0, 1, 1, 1], TWO)
    assert (some["rows"], some["share"], some["wrong"], some["error_rate"]) == (3, 0.75, 1, pytest.approx(1 / 3))
    assert some["interval"] == pytest.approx(share_interval(1, 3))
    # If several labels may be right, the labels are counted: two of the first input and none of the second are wrong.
    labels = [("accept", [0.9, 0.8, 0.1]), ("accept", [0.1, 0.8, 0.1]), ("review", [0.9, 0.9, 0.9])]
    several = accepted_rows(labels, [(1, 2), (1,), ()], LabelNames(("a", "b", "c"), several=True))
    assert (several["rows"], several["share"], several["wrong"]) == (2, pytest.approx(2 / 3), 2)
    assert several["error_rate"] == pytest.approx(2 / 6)
    assert several["interval"][0] < 2 / 6 < several["interval"][1]


def test_where_several_labels_may_be_right_whole_inputs_are_drawn() -> None:
    several = LabelNames(("a", "b", "c"), several=True)

    def thrice(row: dict[str, MethodRow]) -> dict[str, MethodRow]:
        return {name: ([probs[1]] * 3, None) for name, (probs, _) in row.items()}  # type: ignore[index]

    answers: Any = [[0, 1, 2] if truth else [] for truth in truths()]  # as JSON has them
    found = measure([thrice(row) for row in rows_of(0.1)], answers, names=several, how=HOW)
    # Three labels that are all right or all wrong tell no more than one: the same inputs are drawn, no more of them.
    once = measure(rows_of(0.1), truths(), names=TWO, how=HOW)
    assert found["laplace"]["over_temperature"] == pytest.approx(once["laplace"]["over_temperature"])


THREE = LabelNames(("news", "sport", "weather"), several=True)
REVIEW = ReviewRule.model_construct(target_risk=0.05, threshold=0.3, guarantee="empirical")
MANIFEST: Any = SimpleNamespace(
    recommended=SimpleNamespace(predictive="laplace", reason="it was better"),
    predictives={"laplace": SimpleNamespace(thresholds=SimpleNamespace(review=REVIEW))},
    calibration=SimpleNamespace(coverage=0.9, rows=150),
    familiarity=None,
    **{"base_model": "tiny", "quantization": "none", "answers": None, "template": SimpleNamespace(answered=None)},
)


def measured(count: int) -> Report:
    """Return the report of inputs with three labels each, of which several may be right."""
    taken = MeasuredRows()
    for i in range(count):
        present = dict(zip(THREE.names, (0.9, 0.2, 0.6 if i % 2 else 0.4), strict=True))
        answer = {
            "probs": present, "map_probs": present, "score": 0.6, "tokens": 5,
            "decision": "review" if i % 4 == 1 else "accept", "prediction_set": ["news"], "uncertainty": None,
            "flags": [],
        }  # fmt: skip
        taken.add(f"line {i + 1}", (0, 2) if i % 2 and i % 10 != 1 else (0,), answer, {"text": f"text {i}"})
    pairs = [(answer["probs"], None) for answer in taken.answers]
    how = SimpleNamespace(bins=15, resamples=10, seed=0)
    methods = measure([{"map": pair, "laplace": pair} for pair in pairs], taken.truths, names=THREE, how=how)
    return measured_report(
        taken, MANIFEST, methods, names=THREE, predictive="laplace", title="tags",
        measured_on="rows", fields=("text",), unfamiliar=None, nothing=None, notes=[], provenance={}, texts=True,
    )  # fmt: skip


def test_where_one_label_is_right_a_row_has_the_figures_of_its_answer() -> None:
    """Also of fewer choices than there are labels; label sets hold the right label or not."""
    names, taken = LabelNames(("a", "b", "c")), MeasuredRows()
    for probs, held in (((0.2, 0.5, 0.3), "b"), ((0.1, 0.9), "a"), ((0.1, 0.2, 0.7), "c")):
        shown = dict(zip(names.names, probs, strict=False))
        answer = {"probs": shown, "map_probs": shown}
        answer |= {"score": 0.6, "tokens": 5, "decision": "accept", "prediction_set": [held], "flags": []}
        taken.add(f"row {held}", 1, answer | {"uncertainty": {"epistemic": probs[0]}}, {"text": held})
    report = measured_report(
        taken, MANIFEST, {"laplace": {}}, names=names, predictive="laplace", title="choices",
        measured_on="rows", fields=("text",), unfamiliar=None, nothing=None, notes=[], provenance={}, texts=False,
    )  # fmt: skip
    rows = report.rows
    assert rows.epistemic.tolist() == [0.2, 0.1, 0.1]
    assert (rows.probs.tolist()[1], rows.wrong.tolist()) == ([0.1, 0.9, 0.0], [False, False, True])
    assert (rows.references, rows.texts) == (["row b", "row a", "row c"], None)
    assert report.methods["laplace"]["sets"] == {"coverage": 1 / 3}


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
