"""Two workers of a real Ray, one of which is killed: the same bytes and figures as one process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tiny_runs import FinishedRun, sentiment_rows, write_rows

from laplora.bulk import predict
from laplora.bulk.answering import How
from laplora.bulk.evaluate import evaluate_file
from laplora.bulk.parts import Line
from laplora.bulk.predict import predict_file
from laplora.bulk.rows import Source
from laplora.bulk.workers import Start, Workers, worked
from laplora.data.lines import Row
from laplora.errors import ConfigError, LaploraError, ModelError
from laplora.execution.ray_cluster import cluster

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TESTS = Path(__file__).resolve().parents[2]
ONE, TWO = Workers(device="cpu"), Workers(2, device="cpu")


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    """One cluster of this machine, whose workers find this checkout and have these jobs by value."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")
        with cluster(2):
            yield


@dataclass(frozen=True)
class Dies:
    """Does what ``start`` does, but at the row ``at`` its process is killed, until ``graves`` has so many files.

    Without one rows are answered by themselves.
    """

    start: Start | None
    at: int
    graves: Path
    deaths: int = 1

    def __call__(self) -> Callable[[Sequence[Row]], Iterable[Line]]:
        lines = self.start() if self.start else lambda window: [(line, False) for _, line in window]

        def lines_or_death(window: Sequence[Row]) -> Iterator[Line]:
            for (number, _), line in zip(window, lines(window), strict=True):
                graves = len(list(self.graves.iterdir()))
                if number == self.at and graves < self.deaths:
                    (self.graves / str(graves)).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield line

        return lines_or_death


def refuses() -> Callable[[Sequence[Row]], Iterable[Line]]:
    raise ModelError("there is no such model")


def test_a_killed_worker_changes_no_byte(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": str(number), "text": row["text"]} for number, row in enumerate(sentiment_rows())]
    source = write_rows(tmp_path / "in.jsonl", [*rows[:5], {"none": "x"}, *rows[5:]])
    artifact, one, two = sentiment_run.artifact, tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert predict_file(artifact, source, one, How(), ONE, window=8) == (97, 1)
    (tmp_path / "graves").mkdir()
    finish, told = predict.finish, list[str]()
    monkeypatch.setattr(predict, "finish", lambda start, *more: finish(Dies(start, 44, tmp_path / "graves"), *more))
    found = predict_file(artifact, source, two, How(), TWO, window=8, progress=told.append)
    assert found == (97, 1)
    assert len(list((tmp_path / "graves").iterdir())) == 1
    assert two.read_bytes() == one.read_bytes()
    assert told[-1].startswith("13 of 13 blocks")
    assert not (tmp_path / "two.jsonl.parts").exists()


@pytest.mark.exhaustive
def test_two_workers_measure_the_figures_of_one(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laplora.bulk.evaluate.WINDOW", 16)
    labelled = write_rows(tmp_path / "rows.jsonl", [*sentiment_rows(), {"text": "Odd.", "label": "positive"}])
    figures = [evaluate_file(sentiment_run.artifact, labelled, How(), workers) for workers in (ONE, TWO)]
    assert len(figures[0].records) == 97
    assert figures[0] == figures[1]


@pytest.mark.exhaustive
def test_what_a_worker_cannot_do_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.at(write_rows(tmp_path / "rows.jsonl", [{"text": "a"}] * 3), 1)
    with pytest.raises(ModelError, match="there is no such model"):
        list(worked(refuses, source, source.blocks(), TWO))
    (tmp_path / "graves").mkdir()
    with pytest.raises(LaploraError, match="block of rows that begins with 2 has ended 4 workers"):
        list(worked(Dies(None, 2, tmp_path / "graves", deaths=9), source, source.blocks(), TWO))
    assert len(list((tmp_path / "graves").iterdir())) == 4
    with pytest.raises(ConfigError, match="no room for 2 workers of 3 threads: "):
        list(worked(refuses, source, source.blocks(), replace(TWO, threads=3)))
    monkeypatch.setattr(Workers, "device_kind", "cuda")
    with pytest.raises(ConfigError, match="no room for 2 workers of 1 threads and a GPU each"):
        list(worked(refuses, source, source.blocks(), TWO))
