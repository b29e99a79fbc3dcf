"""Calibration against labels and epochs, on the real base model with a few rows; and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.curves import measure, page
from benchmarks.evidence import tasks
from benchmarks.evidence.rows import Row
from benchmarks.evidence.tasks import SMALL, Task
from laplora.errors import DataError
from laplora.prompts.templates import PromptTemplate


def moods(_: Path) -> list[Row]:
    words = (("awful", "dull", "bad"), ("great", "good", "warm"))
    return [({"text": f"a {words[n % 2][n % 3]} film number {n}"}, n % 2) for n in range(60)]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the task one of 60 rows, of which 8 test, and trainings short."""
    template = PromptTemplate("moods", 1, "Review: {text}\nSentiment:")
    monkeypatch.setitem(tasks.TASKS, "trec", Task("trec", SMALL, template, ("negative", "positive"), moods))
    monkeypatch.setattr(measure, "TEST_ROWS", 8)
    monkeypatch.setattr(measure, "EPOCHS", 1)


def _rows(files: dict[str, str]) -> dict[str, list[str]]:
    return {name: Path(path).read_text(encoding="utf-8").splitlines() for name, path in files.items()}


@pytest.mark.usefixtures("_small")
def test_more_labels_are_the_fewer_ones_and_others(tmp_path: Path) -> None:
    few, many = (_rows(measure.write_rows(Path(), n, 0, tmp_path / str(n))) for n in (9, 30))
    other = _rows(measure.write_rows(Path(), 30, 1, tmp_path / "other"))
    assert {name: len(rows) for name, rows in few.items()} == {"train": 6, "calibration": 3, "test": 8}
    assert few["train"] == many["train"][:6]
    assert few["calibration"] == many["calibration"][:3]
    assert few["test"] == many["test"] == other["test"]
    assert set(many["train"]) != set(other["train"])
    every = [row for rows in many.values() for row in rows]
    assert len(set(every)) == len(every) == 38
    assert json.loads(few["test"][0])["label"] in ("negative", "positive")
    with pytest.raises(DataError, match="trec has 52 rows beside its test rows, not 53"):
        measure.write_rows(Path(), 53, 0, tmp_path / "none")


@pytest.mark.real
@pytest.mark.usefixtures("_small")
def test_a_training_is_measured_once(tmp_path: Path) -> None:
    measure.measure(Path(), 24, 3, tmp_path)
    (record,) = measure.measured(tmp_path)
    assert (record["labels"], record["seed"], record["steps"]) == (24, 3, 3)
    assert record["rows"] == {"train": 16, "calibration": 8, "test": 8}
    assert set(page.METHODS) <= set(record["methods"])
    assert all(0 < of["nll"] < 5 and 0 <= of["ece"] <= 1 for of in record["methods"].values())
    assert record["methods"]["map"]["nll"] != record["methods"]["conditioned"]["nll"]
    trained = tmp_path / "trec-24-3" / "adapter" / "adapter_model.safetensors"
    before = trained.stat().st_mtime_ns
    measure.measure(Path(), 24, 3, tmp_path)
    assert trained.stat().st_mtime_ns == before
    assert measure.measured(tmp_path) == [record]


def _methods(loss: float) -> dict[str, dict[str, float]]:
    return {m: {"accuracy": 0.75, "nll": loss + n, "ece": 0.1, "gap": 0.05} for n, m in enumerate(page.METHODS)}


def _of_labels(seed: int, labels: int, loss: float) -> measure.Record:
    return {"labels": labels, "seed": seed, "rows": {"test": 500}, "methods": _methods(loss)}


def _of_steps(seed: int, task: str, losses: dict[int, float]) -> measure.Record:
    points = {str(step): _methods(loss) for step, loss in losses.items()}
    rows = {"train": 300, "calibration": 150, "test": 372}
    return {
        "model": "smollm2-135m",
        "task": task,
        "seed": seed,
        "batch_size": 6,
        "rows": rows,
        "checkpoints": points,
    }


REPRODUCED = [
    _of_steps(0, "sst2", {0: 0.5, 100: 0.25}),
    _of_steps(1, "sst2", {0: 0.5, 100: 0.75}),
    _of_steps(0, "winogrande_s", {0: 9.0, 700: 9.0}),
]


def test_lines_are_means_over_seeds_with_their_spread() -> None:
    text = page.render(
        [_of_labels(0, 50, 0.25), _of_labels(1, 50, 0.75), _of_labels(0, 2000, 0.125)],
        REPRODUCED,
    )
    assert "## Against epochs: SST-2, 2 trainings" in text
    assert "| NLL, nats; epochs | 0 | 2 |" in text  # 100 steps of 6 rows of 300; another task's steps are not here
    assert "| MAP | 0.500 ± 0.000 | 0.500 ± 0.354 |" in text
    assert "| NLL, nats; labels | 50 | 2,000 |" in text
    assert "| temperature scaling | 1.500 ± 0.354 | 1.125 (1) |" in text  # one of two seeds
    assert "| confidence − accuracy; labels |" in text


def test_the_base_has_one_method() -> None:
    base = [_of_steps(0, "sst2", {0: 0.5, 100: 0.25})]
    base[0]["checkpoints"]["0"] = {"map": base[0]["checkpoints"]["0"]["map"]}
    text = page.render([_of_labels(0, 50, 0.25)], base)
    assert "## Against epochs: SST-2, one training" in text
    assert "| MAP | 0.500 | 0.250 |" in text
    assert "| Laplace | - | 3.250 |" in text


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, file in (("PAGE", "page.md"), ("RESULTS", "results.json"), ("PLOT", "curves.png")):
        monkeypatch.setattr(page, name, tmp_path / file)
    (tmp_path / "reproduced.json").write_text(json.dumps({"records": REPRODUCED}))
    monkeypatch.setattr(page, "REPRODUCED", tmp_path / "reproduced.json")


@pytest.mark.usefixtures("_elsewhere")
def test_figures_of_two_calls_are_put_together(tmp_path: Path) -> None:
    def publish(*records: measure.Record) -> None:
        for record in records:
            place = tmp_path / "runs" / f"trec-{record['labels']}-{record['seed']}"
            place.mkdir(parents=True, exist_ok=True)
            (place / "reproduction.json").write_text(json.dumps(record))
        page.publish(tmp_path / "runs")

    with pytest.raises(DataError, match="no results in"):
        publish()
    publish(_of_labels(0, 50, 0.25), _of_labels(0, 150, 0.5))
    for path in (tmp_path / "runs").glob("*"):
        (path / "reproduction.json").unlink()
    publish(_of_labels(0, 50, 0.125))
    assert [(r["labels"], r["methods"]["map"]["nll"]) for r in page.committed()] == [(50, 0.125), (150, 0.5)]
    assert (tmp_path / "page.md").read_text() == page.render(page.committed(), REPRODUCED)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    reproduced = json.loads(page.REPRODUCED.read_text(encoding="utf-8"))["records"]
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.committed(), reproduced)
