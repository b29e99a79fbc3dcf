"""python -m benchmarks.load.no_model [flags of the server] [bare]: a server whose device only sleeps.

/stalls has the seconds by which its loop was late, every 5 ms. ``bare``: an endpoint that only parses and tokenises.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

import service.app
from benchmarks.harness.subject import ARTIFACT
from laplora.encoder import Encoder
from service.__main__ import main
from service.artifacts.predictors import default_library
from service.process import leave
from service.telemetry import event_loop
from service.telemetry.metrics import Metrics

_late: list[float] = []


def sleeping(path: Path, *more: Any) -> Any:
    """Return the predictor of a folder, which sleeps 2 ms a batch, and gives every row the same answer."""
    predictor = default_library().load(path, *more)
    answers = {name: predictor.predict([predictor.sample_row()], name) for name in predictor.predictives}

    def predict(rows: Any, predictive: str, **_: Any) -> Any:
        time.sleep(0.002)
        return answers[predictive] * len(rows)

    vars(predictor).update(predict=predict, verify_golden=lambda run: None)
    return predictor


def bare() -> FastAPI:
    """Return the endpoint."""
    encoder, app = Encoder.of_folder(ARTIFACT), FastAPI()

    async def predict(body: dict[str, list[dict[str, str]]]) -> list[int]:
        return [len(encoder.encode(fields, truncate=False).token_ids) for fields in body["inputs"]]

    app.add_api_route("/predict", predict, methods=["POST"])
    app.add_api_route("/health/ready", lambda: None)
    return app


def watched(make: Any, settings: Any, **parts: Any) -> FastAPI:
    """Return the application that a function makes, with GET /stalls."""
    app: FastAPI = make(settings, library=replace(default_library(), load=sleeping), **parts)
    app.add_api_route("/stalls", lambda: [_late.pop() for _ in range(len(_late))])
    return app


if __name__ == "__main__":
    if sys.argv[-1] == "bare":
        uvicorn.run(bare(), port=int(sys.argv[sys.argv.index("--port") + 1]), log_level="error")
    else:
        event_loop.INTERVAL_S = 0.005
        Metrics.observe_loop_lag = lambda _self, seconds: _late.append(seconds)  # type: ignore[method-assign]
        service.app.create_app = partial(watched, service.app.create_app)
        leave(main())
