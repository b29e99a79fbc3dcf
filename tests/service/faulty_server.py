"""python faulty_server.py [flags]: the real process over a fake predictor, whose device and files fail as told.

A row with the token 666 meets a CUDA fault, 668 a run that lasts until the file FAULT_GATE exists. With FAULT_LOAD=1
the golden replay meets a CUDA fault, with FAULT_HANG_LOAD=FILE it lasts until that file exists; with FAULT_CLOCK=1 the
wall clock jumps a year to and fro at each look.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving import FakePredictor, library

import service.app
from service.__main__ import leave, main

#: Its second part stands for what a driver might repeat of an input: it must not be in the log.
FAULT = RuntimeError("CUDA error: device-side assert triggered SECRET")


class FaultyPredictor(FakePredictor):
    def predict(self, rows: Sequence[Any], *arguments: Any, **options: Any) -> list[Any]:
        if any(668 in row.token_ids for row in rows):
            wait_for(os.environ["FAULT_GATE"])
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
    service.app.create_app = functools.partial(service.app.create_app, library=known)  # type: ignore[assignment]
    leave(main())
