"""python fake_server.py [flags]: the real process, signals and sockets, over a fake predictor.

With FAKE_GATE=FILE every prediction waits until that file exists, and makes FILE.waiting meanwhile; with
FAKE_BROKEN=1 loading fails. FAKE_CHOICES=NAME adds an artifact of that name that answers questions with choices.
A folder named "stuck" in the root is never read to its end.
With FAKE_POISON=N,... rows with these tokens have no answer.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import FakePredictor, library

import service.app
from laplora.errors import GoldenMismatchError
from laplora.prompts.templates import TEMPLATES
from service.__main__ import leave, main


class GatedPredictor(FakePredictor):
    def predict(self, rows: Any, predictive: str | None = None, *, also: Any = (), target_risk: Any = None) -> Any:
        gate = os.environ.get("FAKE_GATE")
        while gate and not Path(gate).exists():
            Path(f"{gate}.waiting").touch()
            time.sleep(0.005)
        return super().predict(rows, predictive, also=also)


if __name__ == "__main__":
    predictor = GatedPredictor()
    if os.environ.get("FAKE_BROKEN"):
        predictor.golden_error = GoldenMismatchError("recorded 0.5, got 0.7")
    for token in filter(None, os.environ.get("FAKE_POISON", "").split(",")):
        predictor.poison[int(token)] = ValueError("poison")
    choices = os.environ.get("FAKE_CHOICES")
    others = [FakePredictor(choices, template=TEMPLATES["multiple_choice"], labels="ABCD")] if choices else []
    known = library(predictor, *others)

    def read(path: Path) -> Any:
        while path.name == "stuck":
            time.sleep(0.01)
        return known.read(path)

    service.app.create_app = functools.partial(service.app.create_app, library=replace(known, read=read))  # type: ignore[assignment]
    leave(main())
