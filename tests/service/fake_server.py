"""python fake_server.py [flags]: the real process, signals and sockets, over a fake predictor.

With FAKE_GATE=FILE every prediction waits until that file exists, and makes FILE.waiting meanwhile; one of a row with a
token N from 99,700 to 99,799 waits for FILE.N as well. At load recorded answers are others with FAKE_BROKEN=golden, and
the device is lost with FAKE_BROKEN=fault. FAKE_CHOICES=NAME adds an artifact of that name that answers questions with
choices, by the labels FAKE_LABELS=A|B|...; those of the first are FAKE_OWN_LABELS. A folder named "stuck" in the root
is never read to its end, and one named "held" is not loaded before it has a file "go". The folder FAKE_REPORT has the
first artifact's report, and its jobs have theirs. With FAKE_POISON=N,... rows with these tokens have no answer; one
with the token 99666 meets a CUDA fault. With FAKE_CLOCK=1 the wall clock jumps a year to and fro at each look.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import FakePredictor, library

import service.app
from laplora.artifact.manifest import FileRecord
from laplora.artifact.report_page import REPORT_PAGE
from laplora.errors import GoldenMismatchError
from laplora.prompts.templates import TEMPLATES
from service.__main__ import main
from service.process import leave

#: Its second part stands for what a driver might repeat of an input: it must not be in the log.
FAULT = RuntimeError("CUDA error: device-side assert triggered SECRET")
#: Tokens of rows that wait for files of their own.
HELD = range(99_700, 99_800)
BROKEN = {"golden": GoldenMismatchError("recorded 0.5, got 0.7"), "fault": FAULT, "bug": KeyError("SECRET")}


class GatedPredictor(FakePredictor):
    def predict(self, rows: Any, predictive: str | None = None, *, also: Any = (), covariance: bool = False) -> Any:
        if gate := os.environ.get("FAKE_GATE"):
            held = {token for row in rows for token in row.token_ids if token in HELD}
            while not all(Path(file).exists() for file in (gate, *(f"{gate}.{token}" for token in held))):
                Path(f"{gate}.waiting").touch()
                time.sleep(0.005)
        return super().predict(rows, predictive, also=also, covariance=covariance)


def jumping_clock() -> Callable[[], float]:
    real, year_s = time.time, 365 * 86_400.0
    steps = itertools.cycle((year_s, -year_s))
    return lambda: real() + next(steps)


if __name__ == "__main__":
    if os.environ.get("FAKE_CLOCK"):
        time.time = jumping_clock()
    own = os.environ.get("FAKE_OWN_LABELS")
    predictor = GatedPredictor(template=TEMPLATES["subject"], labels=own.split("|")) if own else GatedPredictor()
    if folder := os.environ.get("FAKE_REPORT"):
        page = Path(folder, REPORT_PAGE).read_bytes()
        record = FileRecord(sha256=hashlib.sha256(page).hexdigest(), size_bytes=len(page))
        predictor.artifact.path, predictor.artifact.manifest.files = Path(folder), {REPORT_PAGE: record}
    predictor.golden_error = BROKEN.get(os.environ.get("FAKE_BROKEN", ""))
    predictor.poison[99_666] = FAULT
    for token in filter(None, os.environ.get("FAKE_POISON", "").split(",")):
        predictor.poison[int(token)] = ValueError("poison")
    choices = os.environ.get("FAKE_CHOICES")
    labels = os.environ.get("FAKE_LABELS", "A|B|C|D").split("|")
    others = [FakePredictor(choices, template=TEMPLATES["multiple_choice"], labels=labels)] if choices else []
    known = library(predictor, FakePredictor("held"), *others)

    def read(path: Path) -> Any:
        while path.name == "stuck":
            time.sleep(0.01)
        return known.read(path)

    def load(path: Path, *more: Any) -> Any:
        while path.name == "held" and not (path / "go").exists():
            time.sleep(0.01)
        return known.load(path, *more)

    service.app.create_app = functools.partial(service.app.create_app, library=replace(known, read=read, load=load))  # type: ignore[assignment]
    leave(main())
