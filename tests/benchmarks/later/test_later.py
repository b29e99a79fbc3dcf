"""Labels that come later, on the real base model with a few rows; and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.evidence import adapters, plan, splits, tasks
from benchmarks.evidence.plan import STYLES, TRAINED_DRAW, Training
from benchmarks.evidence.rows import Row
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import SMALL, Task
from benchmarks.later import page
from benchmarks.later.measure import METHODS, REFERENCE, Record, measure
from laplora.errors import DataError
from laplora.files import write_json
from laplora.models.offline import ensure_model
from laplora.prompts.templates import PromptTemplate

TRAINING = Training("trec", 15, 0)


def moods(_: Path) -> list[Row]:
    words = (("awful", "dull", "bad"), ("great", "good", "warm"))
    return [({"text": f"a {words[n % 2][n % 3]} film number {n}"}, n % 2) for n in range(60)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of figures, for a task of 60 rows of which 8 test."""
    ensure_model(SMALL)
    template = PromptTemplate("moods", 1, "Review: {text}\nSentiment:")
    monkeypatch.setitem(tasks.TASKS, "trec", Task("trec", SMALL, template, ("negative", "positive"), moods))
    monkeypatch.setattr(plan, "RUNS", tmp_path / "evidence")
    monkeypatch.setattr(splits, "TEST_ROWS", 8)
    monkeypatch.setattr(adapters, "EPOCHS", 2)
    monkeypatch.setattr(adapters, "EARLY_EPOCHS", 1)
    return tmp_path / "later"


def test_labels_come_later(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    measure(TRAINING, Path(), (2, 5), small, said.append)
    assert [line for line in said if "anew" in line] == ["training anew on 12 rows", "training anew on 15 rows"]
    of_two, of_five = (json.loads((small / f"{count}.json").read_text()) for count in (2, 5))
    assert [(r["style"], r["method"]) for r in of_two] == [(style, name) for style in STYLES for name in METHODS]
    assert {r["labels"] for r in of_five} == {5}
    assert all(0 < r["nll"] < 5 and 0 <= r["accuracy"] <= 1 for r in of_two + of_five)
    for one in of_two + of_five:
        trained = next(r for r in of_two + of_five if (*_place(r), r["method"]) == (*_place(one), REFERENCE))
        assert one["difference"] == pytest.approx(one["nll"] - trained["nll"])
        assert one["low"] <= one["difference"] <= one["high"]
        assert (one["low"] < one["high"]) == (one["method"] != REFERENCE)
        assert 0 < one["ece_calibrated"] < 1
    # What learns the labels answers differently with more of them, whether they train or condition.
    assert all(one["nll"] != other["nll"] for one, other in zip(of_two, of_five, strict=True))
    # A second call does nothing, and one for more labels that alone.
    before = (small / "2.json").stat().st_mtime_ns
    measure(TRAINING, Path(), (2, 6), small, said.append)
    assert [line for line in said if "anew" in line][2:] == ["training anew on 16 rows"]
    assert (small / "2.json").stat().st_mtime_ns == before
    # Figures without differences are of before there were any: they are measured again, and nothing is trained.
    write_json(small / "2.json", [{k: v for k, v in one.items() if k != "difference"} for one in of_two])
    measure(TRAINING, Path(), (2,), small, said.append)
    assert len([line for line in said if "anew" in line]) == 3
    assert json.loads((small / "2.json").read_text()) == of_two
    with pytest.raises(DataError, match="trec has 17 rows that could come later, asked for 40"):
        measure(TRAINING, Path(), (40,), small, said.append)


def _place(record: Record) -> tuple[str, int]:
    return record["style"], record["labels"]


def test_a_row_that_comes_later_has_no_other_part(small: Path) -> None:
    dealt = deal(TRAINING, Path())
    others = [*dealt.train, *dealt.pool, *dealt.test]
    assert not {row.id for row in dealt.left} & {row.id for row in others}
    assert len(dealt.left) + len(others) == 60
    assert len(dealt.draws[TRAINED_DRAW]) == 5


def test_figures_of_two_calls_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (("PAGE", "page.md"), ("RESULTS", "results.json"), ("PLOT", "later.png")):
        monkeypatch.setattr(page, name, tmp_path / file)

    def records(seed: int, count: int, loss: float) -> list[page.Record]:
        place = {"task": "trec", "seed": seed, "style": "early", "labels": count, "ece": 0.02, "accuracy": 0.8}
        return [place | {"method": name, "nll": loss + number} for number, name in enumerate(METHODS)]

    page.publish([records(0, 50, 0.25), records(0, 500, 0.125)])
    page.publish([records(1, 50, 0.75), records(0, 500, 0.5)])
    text = (tmp_path / "page.md").read_text()
    assert "## trec, early (2 trainings)" in text
    assert "| conditioned | 1.500 | 1.500 |" in text  # the mean of two seeds, and the later call's figure
    assert (tmp_path / "later.png").stat().st_size > 1000


def test_a_difference_is_shown_with_what_is_known_of_it() -> None:
    def record(seed: int, method: str, difference: float) -> Record:
        place = {"task": "trec", "seed": seed, "style": "early", "labels": 50, "method": method, "accuracy": 0.8}
        interval = {"difference": difference, "low": difference - 0.02, "high": difference + 0.02}
        return place | interval | {"nll": 0.5, "ece": 0.04, "ece_calibrated": 0.03}

    def shown(*seeds: float) -> str:
        page_of = [record(seed, name, d) for seed, d in enumerate(seeds) for name in METHODS]
        return page.render(page_of)

    assert "| conditioned | **-0.030 (-0.050 to -0.010)** |" in shown(-0.03)
    assert "| conditioned | -0.010 (-0.030 to +0.010) |" in shown(-0.01)
    # Of several trainings no interval over rows says what another training would give.
    assert "| conditioned | -0.040 (-0.050 to -0.030) |" in shown(-0.03, -0.05)
    assert "| temperature scaling | 0.040 (0.030) |" in shown(-0.03)
    assert shown(-0.03).count("| trained anew |") == 3  # it is not compared with itself


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.committed())
    assert torch.tensor([record["nll"] for record in page.committed()]).isfinite().all()
