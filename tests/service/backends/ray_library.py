"""What replicas of tests load in the place of models: predictors that compute nothing, held and killed by files.

While the file ``FAKE_RAY/hold`` exists, no prediction ends. A prediction of a row with the token 99555 takes the file
``FAKE_RAY/kill`` away, where there is one, and ends its process as a lost machine would. One of the token 99556 loses
the device.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import FakePredictor, library

from service.artifacts.predictors import Library

KILLER, FAULTY = 99_555, 99_556
NAMES = ("fake", "second")


class FilePredictor(FakePredictor):
    def predict(self, rows: Any, predictive: str | None = None, *, also: Any = (), covariance: bool = False) -> Any:
        folder = Path(os.environ["FAKE_RAY"])
        if any(KILLER in row.token_ids for row in rows):
            try:
                (folder / "kill").unlink()
            except FileNotFoundError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        while (folder / "hold").exists():
            time.sleep(0.005)
        return super().predict(rows, predictive, also=also, covariance=covariance)


def fakes() -> Library:
    root = Path(os.environ["FAKE_RAY"]) / "artifacts"
    predictors = [FilePredictor(name, path=root / name) for name in NAMES]
    for predictor in predictors:
        predictor.poison[FAULTY] = RuntimeError("CUDA error: device-side assert triggered")
    known = library(*predictors)
    return replace(known, encoder=known.load)
