"""The report's table and plots: right numbers, right highlights, nothing cut and nothing overlapping."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from laplora.metrics.scores import Evaluation, evaluate_probs
from laplora.report.names import display_name
from training.report.evaluation import (
    print_table,
    reliability_figure,
    results_table,
    risk_coverage_figure,
)


def evaluations(classes: int = 2, rows: int = 120) -> dict[str, Evaluation]:
    """Return four methods: one useless, one overconfident, two calibrated."""
    g = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
    factors = {"zero_shot": 0.05, "map": 4.0, "temperature": 1.0, "laplace": 0.9}
    return {
        method: evaluate_probs(torch.softmax(f * logits, 1), labels, resamples=100) for method, f in factors.items()
    }


def six_methods() -> dict[str, Evaluation]:
    got = evaluations(4)
    return got | {"laplace_evidence_group": got["laplace"], "laplace_evidence_scalar": got["map"]}


def test_markdown_has_every_method_value_and_interval_and_marks_the_best() -> None:
    given = evaluations()
    lines = results_table(given).splitlines()
    assert lines[0].startswith("| method | acc ↑ | NLL ↓ | ECE ↓ |")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["zero-shot", "MAP", "temperature scaling", "Laplace"]
    assert len({line.count("|") for line in lines}) == 1
    best = min(given, key=lambda m: given[m].nll)
    for line, (method, evaluation) in zip(lines[2:], given.items(), strict=True):
        for value in (evaluation.accuracy, evaluation.nll, evaluation.ece, evaluation.brier, evaluation.aurc):
            assert f"{value:.3f}" in line
        low, high = evaluation.intervals["nll"]
        assert f"[{low:.3f}–{high:.3f}]".replace("[0.", "[.").replace("–0.", "–.") in line
        assert (f"**{evaluation.nll:.3f}**" in line.split("|")[3]) == (method == best)
    one = given["map"]
    assert results_table({"map": one, "laplace": one}).count("**") == 2 * 2 * 6, "equal as printed: both best"
    assert "**" not in results_table({"map": one})


@pytest.mark.parametrize("width", [80, 60])
def test_a_terminal_shows_every_digit(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(six_methods(), title="sst2, 120 test rows")
    text = capsys.readouterr().out
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    assert all(f"{evaluation.nll:.3f}" in text for evaluation in six_methods().values())


def text_boxes(figure: Figure) -> dict[str, Bbox]:
    """Return the pixel box of every visible title, axis label and legend of a drawn figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    texts: list[Text] = [t for t in figure.texts if t.get_text()]
    for axes in figure.axes:
        if axes.axison:
            texts += [t for t in (axes.title, axes.xaxis.label, axes.yaxis.label) if t.get_text()]
    boxes = {f"{i}: {t.get_text()}": t.get_window_extent(renderer) for i, t in enumerate(texts)}
    return boxes | {"legend": figure.legends[0].get_window_extent(renderer)}


@pytest.mark.slow
@pytest.mark.parametrize("make", [reliability_figure, risk_coverage_figure])
@pytest.mark.parametrize("given", [six_methods(), {"map": evaluations()["map"]}], ids=["six methods", "one"])
def test_no_text_overlaps_or_leaves_the_picture(make: Any, given: dict[str, Evaluation]) -> None:
    figure = make(given, title="sst2-smollm2-135m-nf4: 120 test rows")
    boxes = text_boxes(figure)
    for (a, box_a), (b, box_b) in combinations(boxes.items(), 2):
        assert not box_a.overlaps(box_b), (a, b)
    width, height = figure.canvas.get_width_height()
    for name, box in boxes.items():
        # One pixel of antialiasing.
        assert min(box.x0, box.y0) >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y1 <= height + 1, name


def test_reliability_panels_show_each_method_with_its_ece_and_all_rows() -> None:
    given = six_methods()
    figure = reliability_figure(given, title="t")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    for title, (method, evaluation) in zip(titles, given.items(), strict=True):
        assert title.splitlines()[0] == display_name(method)
        assert f"ECE {evaluation.ece:.3f}" in title
    counts = [sum(int(t.get_text()) for t in axes.texts) for axes in figure.axes if axes.texts]
    assert counts == [120] * 6
