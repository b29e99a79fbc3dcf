"""kill -9 in the middle of loading a real model, and a new start on the same port."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from free_ports import free_port
from server_process import predicted, server_process
from tiny_runs import FinishedRun

from laplora.predictor import Predictor

TEXTS = ["The film was superb.", "The plot was dull."]


def files(*folders: Path) -> dict[str, int]:
    """Return every file under the folders with its size."""
    return {str(p): p.stat().st_size for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "stage", [pytest.param("loading base model", marks=pytest.mark.exhaustive), "replaying the golden answers"]
)
def test_killed_while_it_loads_and_started_again(
    sentiment_run: FinishedRun, sentiment_predictor: Predictor, tmp_path: Path, stage: str
) -> None:
    cache = tmp_path / "cache"
    command = ["-m", "service", "--artifact", str(sentiment_run.artifact), "--device", "cpu"]
    command += ["--port", str(free_port())]
    command += ["--cache", str(cache), "--artifacts-root", str(sentiment_run.artifact.parent)]
    kept = (sentiment_run.artifact.parent, sentiment_run.base)
    before = files(*kept)
    with server_process(command) as process:
        while not any(f'"stage": "{stage}"' in line for line in list(process.lines)):
            assert process.popen.poll() is None, process.log
            time.sleep(0.01)
        process.popen.send_signal(signal.SIGKILL)
        assert process.left() == -signal.SIGKILL
    assert files(*kept) == before
    with server_process(command) as process, process.client() as client:
        answer = predicted(client, *TEXTS, predictive="laplace")
    assert answer["artifact"]["digest"] == sentiment_predictor.artifact.digest
    rows = [sentiment_predictor.encode({"text": text}, truncate=True) for text in TEXTS]
    for got, want in zip(answer["predictions"], sentiment_predictor.predict(rows, "laplace"), strict=True):
        # Float32; the same rows in one batch, on as many threads as the machine has.
        assert got["probs"] == pytest.approx(want.probs, abs=2e-4)
    assert files(*kept) == before
    # What hashing the weights noted, whole; a process killed in between may leave a note under a name of its own.
    notes = [path.read_text() for path in (cache / "weight-hashes").iterdir() if not path.suffix]
    assert notes == [sentiment_predictor.artifact.manifest.base_weights_hash]
