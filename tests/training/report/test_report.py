"""The report's table: right numbers, right highlights, nothing cut."""

from __future__ import annotations

import pytest
import torch

from laplora.errors import DataError
from laplora.metrics.scores import Evaluation, evaluate_probs
from training.report.evaluation import print_table, results_table
from training.report.markdown import escaped, fill, markdown_table


def evaluations(classes: int = 2, rows: int = 120) -> dict[str, Evaluation]:
    """Return four methods: one useless, one overconfident, two calibrated."""
    g = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
    factors = {"zero_shot": 0.05, "map": 4.0, "temperature": 1.0, "laplace": 0.9}
    return {
        method: evaluate_probs(torch.softmax(f * logits, 1), labels, resamples=100) for method, f in factors.items()
    }


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


def test_a_terminal_shows_every_digit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_table(evaluations(4), title="sst2, 120 test rows")
    text = capsys.readouterr().out
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 60
    assert all(f"{evaluation.nll:.3f}" in text for evaluation in evaluations(4).values())


def test_places_of_a_page_are_filled_and_none_is_left_over() -> None:
    assert markdown_table(["a"], [[escaped("y | z")]]) == "| a |\n| --- |\n| y \\| z |\n"
    page = "It costs <!-- x:begin a -->old<!-- x:end a --> now.\n<!-- x:begin b -->\n| old |\n<!-- x:end b -->\n"
    filled = fill(page, "x", {"a": "new", "b": "| t |\n"})
    assert filled == (
        "It costs <!-- x:begin a -->new<!-- x:end a --> now.\n<!-- x:begin b -->\n\n| t |\n\n<!-- x:end b -->\n"
    )
    assert fill(filled, "x", {"a": "new", "b": "| t |"}) == filled
    for texts in ({"a": "new"}, {"a": "new", "b": "", "c": ""}):
        with pytest.raises(DataError, match="one pair of markers for each"):
            fill(page, "x", texts)
