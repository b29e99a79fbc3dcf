"""Two workers of a real Ray, one of which is killed: the same bytes and figures as one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bulk_jobs import Dies, Echoes, Refuses
from tiny_runs import FinishedRun, sentiment_rows, write_rows

from laplora.bulk import score
from laplora.bulk.evaluate import evaluate_file
from laplora.bulk.rows import Source
from laplora.bulk.score import Scored, score_file
from laplora.bulk.workers import Work, run_by_ray
from laplora.errors import ConfigError, LaploraError, ModelError
from laplora.ray_cluster import cluster

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    """One cluster of this machine, whose workers find this checkout and ``bulk_jobs``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")
        with cluster(2):
            yield


def test_a_killed_worker_changes_no_byte(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": str(number), "text": row["text"]} for number, row in enumerate(sentiment_rows())]
    source = write_rows(tmp_path / "in.jsonl", [*rows[:5], {"none": "x"}, *rows[5:]])
    options = {"device": "cpu", "window": 8}
    assert score_file(sentiment_run.artifact, source, tmp_path / "one.jsonl", **options) == Scored(97, 1, (6,))

    (tmp_path / "graves").mkdir()
    job = score.ScoreJob
    monkeypatch.setattr(score, "ScoreJob", lambda *arguments: Dies(job(*arguments), 44, tmp_path / "graves"))
    told: list[str] = []
    found = score_file(
        sentiment_run.artifact, source, tmp_path / "two.jsonl", **options, workers=2, progress=told.append
    )
    assert found == Scored(97, 1, (6,))
    assert len(list((tmp_path / "graves").iterdir())) == 1
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert told[-1].startswith("13 of 13 blocks")
    assert not (tmp_path / "two.jsonl.parts").exists()


def test_two_workers_measure_the_figures_of_one(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laplora.bulk.evaluate.WINDOW", 16)
    source = write_rows(tmp_path / "rows.jsonl", [*sentiment_rows(), {"text": "Odd.", "label": "positive"}])
    figures = [
        evaluate_file(sentiment_run.artifact, source, tmp_path / "parts", device="cpu", resamples=20, workers=workers)
        for workers in (1, 2)
    ]
    assert figures[0].rows == 97
    assert figures[0] == figures[1]


def test_what_a_worker_cannot_do_is_its_own_error(tmp_path: Path) -> None:
    source = Source.at(write_rows(tmp_path / "rows.jsonl", [{"text": "a"}] * 3), 1)
    work = Work(Refuses(), source, str(tmp_path / "parts"), 1)
    with pytest.raises(ModelError, match="there is no such model"):
        list(run_by_ray(work, source.blocks(), workers=2, on_gpu=False))
    (tmp_path / "graves").mkdir()
    dies = Work(Dies(Echoes(), 2, tmp_path / "graves", deaths=9), source, str(tmp_path / "more"), 1)
    with pytest.raises(LaploraError, match="block of rows that begins with 2 has ended 4 workers"):
        list(run_by_ray(dies, source.blocks(), workers=2, on_gpu=False))
    assert len(list((tmp_path / "graves").iterdir())) == 4
    with pytest.raises(ConfigError, match="a GPU each, and there are 0"):
        list(run_by_ray(work, source.blocks(), workers=2, on_gpu=True))
    with pytest.raises(ConfigError, match="has 3 threads, and Ray's largest machine 2 processors"):
        list(run_by_ray(replace(work, threads=3), source.blocks(), workers=1, on_gpu=False))
