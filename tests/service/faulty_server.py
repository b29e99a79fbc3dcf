"""python faulty_server.py [flags]: the real process over a fake predictor, whose device and files fail as told.

A row with the token 666 meets a CUDA fault, 667 the end of the device's thread, 668 a run that lasts until the file
FAULT_GATE exists, 669 a kill of the process, as by a host without memory. With FAULT_LOAD_GATE=FILE loading waits for
that file; with FAULT_LOAD=1 the golden replay meets a CUDA fault, with FAULT_HANG_LOAD=FILE it lasts until that file
exists; with FAULT_CLOCK=1 the wall clock jumps a year to and fro at each look.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving import FakePredictor, library

import service.app
from service.__main__ import leave, main
from service.artifacts.predictors import Library

#: Its second part stands for what a driver might repeat of an input: it must not be in the log.
FAULT = RuntimeError("CUDA error: device-side assert triggered SECRET")


class FaultyPredictor(FakePredictor):
    def predict(self, rows: Sequence[Any], *arguments: Any, **options: Any) -> list[Any]:
        tokens = {token for row in rows for token in row.token_ids}
        if 667 in tokens:
            raise SystemExit("SECRET")
        if 668 in tokens:
            wait_for(os.environ["FAULT_GATE"])
        if 669 in tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(rows, *arguments, **options)

    def golden_answer(self) -> list[Any]:
        if gate := os.environ.get("FAULT_HANG_LOAD"):
            wait_for(gate)
        return super().golden_answer()


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def jumping_clock() -> Callable[[], float]:
    real, year_s = time.time, 365 * 86_400.0
    steps = itertools.cycle((year_s, -year_s))
    return lambda: real() + next(steps)


if __name__ == "__main__":
    if os.environ.get("FAULT_CLOCK"):
        time.time = jumping_clock()
    predictor = FaultyPredictor()
    predictor.poison[666] = FAULT
    if os.environ.get("FAULT_LOAD"):
        predictor.golden_error = FAULT
    known = library(predictor)

    def load(*arguments: Any) -> Any:
        if gate := os.environ.get("FAULT_LOAD_GATE"):
            wait_for(gate)
        return known.load(*arguments)

    service.app.create_app = functools.partial(service.app.create_app, library=Library(load, known.read))  # type: ignore[assignment]
    leave(main())
