"""The driver of sweeps, and its sweep on a few rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.sweeps import curves
from benchmarks.sweeps.driver import Point, Record, Sweep
from laplora.errors import DataError


def test_what_is_measured_stays_and_is_put_among_what_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def job(n: int) -> Callable[[], list[Record]]:
        return lambda: made.append(n) or [{"n": n, "seed": seed, "nll": n + seed / 4} for seed in (0, 1)]

    sweep = Sweep(
        name="one",
        text=("One", "How."),
        axis="labels",
        metrics={"nll": "NLL", "ece": "ECE"},
        jobs=lambda options: [(str(n), job(n)) for n in options.at],
        key=lambda record: (record["n"], record["seed"]),
        points=lambda records: [
            *(Point("a task", r["n"], "MAP", {"nll": r["nll"]}) for r in records),
            Point("a task", 2000, "Laplace", {"nll": 0.5, "ece": (0.25, 0.125, 0.5)}),
        ],
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Sweep, "folder", tmp_path)
    for at in ([1, 3], [3]):
        sweep.measure(argparse.Namespace(at=at))
    assert made == [1, 3]
    sweep.publish()
    (tmp_path / "runs" / "one" / "3.json").write_text('[{"n": 3, "seed": 0, "nll": 7}]')
    sweep.publish()
    assert [record["nll"] for record in sweep.committed()] == [1, 1.25, 7, 3.25]
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| NLL | MAP | 1.125 ± 0.177 | 5.125 ± 2.652 | - |" in text
    assert "| ECE | Laplace | - | - | 0.250 [0.125, 0.500] |\n" in text
    assert (tmp_path / "one.png").stat().st_size > 1000


@pytest.fixture
def small_curves(small_task: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "TEST_ROWS", 8)
    monkeypatch.setattr(curves, "EPOCHS", 1)


@pytest.mark.usefixtures("small_curves")
def test_more_labels_are_the_fewer_ones_and_others(tmp_path: Path) -> None:
    def rows(labels: int, seed: int) -> dict[str, list[str]]:
        files = curves.write_rows(Path(), labels, seed, tmp_path / f"{labels}-{seed}")
        assert curves.configuration(labels, seed, files, tmp_path).seed == seed
        return {name: Path(path).read_text(encoding="utf-8").splitlines() for name, path in files.items()}

    few, many, other = rows(9, 0), rows(30, 0), rows(30, 1)
    assert {name: len(lines) for name, lines in few.items()} == {"train": 6, "calibration": 3, "test": 8}
    assert few["train"] == many["train"][:6]
    assert few["calibration"] == many["calibration"][:3]
    assert few["test"] == many["test"] == other["test"]
    assert set(many["train"]) != set(other["train"])
    assert len({line for lines in many.values() for line in lines}) == 38
    with pytest.raises(DataError, match="trec has 52 rows beside its test rows, not 53"):
        rows(53, 0)


@pytest.mark.real
@pytest.mark.exhaustive
@pytest.mark.usefixtures("small_curves")
def test_a_training_on_labels_is_measured(tmp_path: Path) -> None:
    (record,) = curves.measure(Path(), 24, 3, tmp_path)
    assert (record["labels"], record["seed"]) == (24, 3)
    assert set(curves.METHODS) <= set(record["methods"])
    assert all(0 < of["nll"] < 5 and 0 <= of["ece"] <= 1 for of in record["methods"].values())
    assert record["methods"]["map"]["nll"] != record["methods"]["conditioned"]["nll"]
