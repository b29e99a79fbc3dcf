"""The report's table and plots: right numbers, right highlights, nothing cut and nothing overlapping."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from rich.console import Console

from laplora.errors import DataError
from laplora.metrics.scores import Evaluation, evaluate_probs
from training.report.evaluation import (
    display_name,
    print_table,
    reliability_figure,
    results_table,
    risk_coverage_figure,
    write_report,
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


def printed(given: dict[str, Evaluation], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(given, title="sst2, 120 test rows", console=console)
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_names() -> None:
    assert display_name("zero_shot") == "zero-shot"
    assert display_name("map") == "MAP"
    assert display_name("laplace_evidence_group") == "Laplace (evidence, group)"
    assert display_name("something") == "something"


def test_markdown_has_every_method_value_and_interval_and_marks_the_best() -> None:
    given = evaluations()
    lines = results_table(given).splitlines()
    assert lines[0].startswith("| method | acc ↑ | NLL ↓ | ECE ↓ |")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["zero-shot", "MAP", "temperature scaling", "Laplace"]
    assert len({line.count("|") for line in lines}) == 1
    for line, evaluation in zip(lines[2:], given.values(), strict=True):
        for value in (evaluation.accuracy, evaluation.nll, evaluation.ece, evaluation.brier):
            assert f"{value:.3f}" in line
        low, high = evaluation.intervals["nll"]
        assert f"[{low:.3f}–{high:.3f}]".replace("[0.", "[.").replace("–0.", "–.") in line
    best = min(given, key=lambda m: given[m].nll)
    for method, line in zip(given, lines[2:], strict=True):
        assert (f"**{given[method].nll:.3f}**" in line.split("|")[3]) == (method == best)


def test_equal_values_as_printed_are_all_best_and_a_lone_method_is_not() -> None:
    given = evaluations()
    both = {"map": given["map"], "laplace": given["map"]}
    assert results_table(both).count("**") == 2 * 2 * 6
    assert "**" not in results_table({"map": given["map"]})


def test_terminal_table_fits_eighty_columns_without_cutting_a_digit() -> None:
    given = evaluations()
    text = printed(given, 80)
    assert "…" not in text
    for evaluation in given.values():
        assert f"{evaluation.nll:.3f}" in text
    assert "temperature scaling" in text
    assert "…" not in printed(six_methods(), 60)


def test_a_missing_auroc_is_a_dash() -> None:
    perfect = evaluate_probs(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]), resamples=10)
    given = {"map": perfect, "laplace": perfect}
    assert "| - |" in results_table(given)
    assert " - " in printed(given, 100)


@pytest.mark.slow
def test_write_report_makes_the_three_files(tmp_path: Path) -> None:
    paths = write_report(evaluations(), tmp_path / "deep" / "report", title="sst2: 120 test rows")
    assert [p.name for p in paths] == ["reliability.png", "risk_coverage.png", "results.md"]
    for path in paths[:2]:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size > 10_000  # an empty canvas of this size is smaller
    assert paths[2].read_text(encoding="utf-8").startswith("# sst2: 120 test rows\n\n| method |")


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
@pytest.mark.parametrize("given", [evaluations(), six_methods(), {"map": evaluations()["map"]}])
def test_no_text_overlaps_or_leaves_the_picture(make: object, given: dict[str, Evaluation]) -> None:
    figure = make(given, title="sst2-smollm2-135m-nf4: 120 test rows")  # type: ignore[operator]
    boxes = text_boxes(figure)
    for (a, box_a), (b, box_b) in combinations(boxes.items(), 2):
        assert not box_a.overlaps(box_b), (a, b)
    width, height = figure.canvas.get_width_height()
    for name, box in boxes.items():
        # One pixel of antialiasing.
        assert box.x0 >= -1, name
        assert box.y0 >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y1 <= height + 1, name


def test_reliability_panels_show_each_method_with_its_ece_and_all_rows() -> None:
    given = six_methods()
    figure = reliability_figure(given, title="t")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 6
    for title, (method, evaluation) in zip(titles, given.items(), strict=True):
        assert title.splitlines()[0] == display_name(method)
        assert f"ECE {evaluation.ece:.3f}" in title
    counts = [sum(int(t.get_text()) for t in axes.texts) for axes in figure.axes if axes.texts]
    assert counts == [120] * 6


def test_two_class_panels_start_at_one_half() -> None:
    # Two classes have a confidence of at least one half, in the bin (7/15, 8/15].
    figure = reliability_figure(evaluations(2), title="t")
    assert figure.axes[0].get_xlim() == pytest.approx((7 / 15, 1))


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    for call in (
        lambda: write_report({}, tmp_path, title="t"),
        lambda: print_table({}, title="t"),
        lambda: results_table({}),
    ):
        with pytest.raises(DataError, match="at least one"):
            call()
