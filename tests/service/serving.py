"""A server in this process, over a predictor that computes nothing but keeps the real one's promises."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from operator import call
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from laplora.answers.explaining import NothingAccepted
from laplora.answers.prediction import LabelArrays, PosteriorSpread, Prediction
from laplora.decisions.thresholds import ReviewRule
from laplora.decisions.wanted import Costs, Wanted, by_label
from laplora.errors import ArtifactCorruptError, TooManyTokensError
from laplora.jacobians.contrasts import ReversePass
from laplora.models.held_weights import HeldWeights
from laplora.pool.served import NO_EXPERTS
from laplora.predictive.kinds import PredictiveName
from laplora.predictor import Predictor
from laplora.prompts.questions import Question, answered_question
from laplora.prompts.rows import EncodedRow
from laplora.prompts.templates import TEMPLATES, PromptTemplate, render
from laplora.prompts.token_bounds import TokenBounds
from service.__main__ import server_config
from service.app import create_app
from service.artifacts.predictors import Library
from service.errors import kinds_by_code
from service.security.callers import caller_of
from service.settings import Settings

#: No sound test waits this long, however busy the machine is.
GIVE_UP_S = 110.0
#: What a predictive of an artifact has that a report is judged by.
_REVIEW: dict[str, Any] = {"target_risk": 0.05, "threshold": 0.3, "guarantee": "empirical", "score": "total_entropy"}
_REVIEW |= {"accepted": 1, "accepted_risk": 0.0, "auroc": {}, "reason": "fixed"}
RULE = SimpleNamespace(thresholds=SimpleNamespace(review=ReviewRule(**_REVIEW), flags={}))
#: What a manifest records of tests of a predictive, its label sets too.
MEASURED = {"rows": 500, "nll": 0.4, "ece": 0.08, "ece_limit": 0.06, "set_coverage": 0.914, "set_mean_size": 1.2}
#: The one object that all fake predictors stand on.
BASE = SimpleNamespace(model="tiny", quantization="none", dtype="float32")


class FakePredictor(Predictor):
    """Answers with probabilities that name the row: its largest token over 100,000.

    ``hold`` blocks the device until ``released`` is set; ``poison`` maps a token to the error of every batch
    that holds it; a batch of more than ``most_rows`` runs out of memory. Rows with a token of
    ``unfamiliar`` are flagged so.
    """

    artifact: Any
    base: Any
    device: Any
    class_count = 2
    max_tokens = 64
    own_bytes = 1000
    recommended: PredictiveName = "laplace"
    predictives: tuple[PredictiveName, ...] = ("map", "laplace", "temperature")
    review_scores: Any = MappingProxyType({})
    weights = HeldWeights("plain", "nothing is quantized")
    reverse_pass = ReversePass("automatic", "a fake has none", None)
    token_bounds = TokenBounds(None)
    experts = NO_EXPERTS
    posterior: Any = SimpleNamespace(structure="none of a fake")

    def __init__(
        self,
        name: str = "fake",
        *,
        path: Path = Path("fake"),
        template: PromptTemplate = TEMPLATES["sentiment"],
        labels: Sequence[str] = ("negative", "positive"),
        max_tokens: int = 64,
        question: Question | None = None,
        most_options: int | None = None,
    ) -> None:
        reason = {"predictive": "laplace", "reason": "it was better", "chosen_by": "calibration", "table": {}}
        self.base = BASE
        named = {"base_model": "tiny", "quantization": "none", "likelihood": "categorical", "files": {}, "base": BASE}
        manifest = SimpleNamespace(
            **named,
            labels=tuple(labels),
            template=SimpleNamespace(template=lambda: template, answered=template.answered),
            data={},
            metrics={"map": {"nll": 0.5}, "laplace": MEASURED},
            servable=self.predictives,
            calibration=SimpleNamespace(coverage=0.9, rows=150, ordered=False),
            familiarity=SimpleNamespace(false_alarms=0.02),
            predictives=dict.fromkeys(self.predictives, RULE),
            recommended=SimpleNamespace(**reason, model_dump=lambda: reason),
            created="2026-12-01T12:00:00+00:00",
            answers=answered_question(question, template, labels, several=False),
            most_options=most_options,
        )
        self.artifact = SimpleNamespace(name=name, digest=f"sha256:{name}", manifest=manifest, path=path)
        self.device = SimpleNamespace(type="cpu")
        self.class_count, self.max_tokens = len(labels), max_tokens
        self.template, self.labels = template, tuple(labels)
        self.batches: list[tuple[str, list[EncodedRow]]] = []
        self.also: list[tuple[str, ...]] = []
        self.poison: dict[int, Exception] = {}
        self.unfamiliar: set[int] = set()
        self.most_rows = 10_000
        self.entered, self.released = threading.Event(), threading.Event()
        self.released.set()
        self.golden_error: Exception | None = None
        self.golden_answers = 1
        self.threads: set[str] = set()
        self.nan = False

    def hold(self) -> None:
        self.entered.clear()
        self.released.clear()

    def encode(self, inputs: Mapping[str, object], *, truncate: bool) -> EncodedRow:
        prompt, classes = render(self.template, inputs, self.labels)
        words = prompt.split()
        ids = [int(w) if w.isdecimal() and len(w) < 6 else 1 for w in words]
        if len(ids) > self.max_tokens:
            if not truncate:
                raise TooManyTokensError("too long", limit=self.max_tokens, got=len(ids))
            ids = ids[-self.max_tokens :]
        return EncodedRow(tuple(ids), classes, truncated=len(words) > len(ids))

    def sample_row(self, tokens: int | None = None) -> EncodedRow:
        row = self.encode({"prompt": "Answer:"}, truncate=True)
        return row if tokens is None else replace(row, token_ids=(row.token_ids * tokens)[:tokens])

    def device_tokens(self, row: EncodedRow) -> int:
        return len(row.token_ids)

    def predict(
        self,
        rows: Sequence[EncodedRow],
        predictive: str | None = None,
        *,
        also: Sequence[str] = (),
        covariance: bool = False,
    ) -> list[Any]:
        predictive = predictive or self.recommended
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        self.released.wait()
        self.batches.append((predictive, list(rows)))
        self.also.append(tuple(also))
        for token in (token for row in rows for token in row.token_ids if token in self.poison):
            raise self.poison[token]
        if len(rows) > self.most_rows:
            raise RuntimeError("CUDA out of memory")
        with_variance = "laplace" in (predictive, *also)
        return [self._one(row, predictive, with_variance, covariance) for row in rows]

    def row(self, *tokens: int) -> EncodedRow:
        return EncodedRow(tokens, self.class_count)

    def decided(self, predictions: Sequence[Any], wanted: Wanted | None) -> list[Any]:
        """Accept what risks less than asked for: here, half of the score."""
        if not isinstance(wanted, float):
            return list(predictions)
        rule = RULE.thresholds.review.model_copy(update={"target_risk": wanted, "threshold": 2 * wanted})
        return [replace(p, decision=["review", "accept"][p.score <= rule.threshold], rule=rule) for p in predictions]

    def nothing_accepted(self, predictive: str, wanted: Wanted | None) -> NothingAccepted | None:
        """Every score is 0.25; what is wanted of other labels is refused."""
        if isinstance(wanted, Costs):
            wanted.matrix(self.labels)
        elif isinstance(wanted, Mapping):
            assert all(by_label(wanted, self.labels, "target_risk"))
        nothing = isinstance(wanted, float) and wanted < 0.125
        return NothingAccepted(f"{predictive} accepts nothing", 0.125) if nothing else None

    def _one(self, row: EncodedRow, predictive: str, posterior: bool, covariance: bool) -> Prediction:
        classes = row.class_count
        first = float("nan") if self.nan else max((t for t in row.token_ids if t > 1), default=0) / 100_000
        probs = np.array([first] + [(1 - first) / (classes - 1)] * (classes - 1))
        spread = predictive != "map"
        fixed: dict[str, Any] = {
            "label_mass": 0.9,
            "familiarity": 0.5,
            "score": 0.25,
            "prediction_set": [self.labels[0]],
        }
        fixed |= {"total": 0.5, "decision": "accept", "calibrated_scores": {"temperature": 0.3}}
        return Prediction(
            predictive=cast(PredictiveName, predictive),
            labels=self.labels[:classes],
            label_index=classes - 1,
            arrays=LabelArrays(probs, probs, np.full(classes, 0.1) if spread else None, {"temperature": probs}),
            logit_mean=np.zeros(classes),
            logit_variance=np.full(classes, 0.1) if posterior else None,
            logit_covariance=np.full((classes, classes), 0.1) if posterior and covariance else None,
            aleatoric=0.4 if spread else None,
            epistemic=0.1 if spread else None,
            flags=["unfamiliar"] if self.unfamiliar & set(row.token_ids) else [],
            rule=RULE.thresholds.review,
            tokens=len(row.token_ids),
            truncated=row.truncated,
            posterior=PosteriorSpread(np.full(classes, 0.2), 0.3, 0.15) if posterior and not spread else None,
            **fixed,
        )

    def verify_golden(self, run: Callable[[Callable[[], list[Any]]], list[Any]] = call) -> None:
        for _ in range(self.golden_answers):
            run(self.golden_answer)

    def golden_answer(self) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        if self.golden_error is not None:
            raise self.golden_error
        return []


def queued_plans(app: FastAPI) -> int:
    """Return how many requests have rows in the queue or on the device."""
    return sum(entry.queued_at is not None for entry in app.state.backend.queue.entries)


def artifacts_in(root: Path, *names: str) -> list[FakePredictor]:
    """Return predictors of these names, each with a folder in the root that looks like an artifact's."""
    predictors = []
    for name in names:
        (root / name).mkdir()
        (root / name / "manifest.json").write_text("{}")
        predictors.append(FakePredictor(name, path=root / name))
    return predictors


def code(response: httpx.Response) -> tuple[int, str]:
    """Return an error's status and code."""
    return response.status_code, response.json()["error"]["code"]


async def changed(client: httpx.AsyncClient, change: str, **request: Any) -> httpx.Response:
    """Ask for a change, such as ``fake/load``, wait for its end, and return what it came to as one answer."""
    response = await client.post(f"/artifacts/{change}", **request)
    while response.status_code == 202:
        status = (await client.get(response.headers["location"])).json()
        if status["error"] is not None:
            (kind,) = kinds_by_code(status["error"]["code"])
            return httpx.Response(kind.status, json={"error": status["error"]})
        if status["result"] is not None:
            return httpx.Response(200, json=status["result"])
        await asyncio.sleep(0.005)
    return response


async def name_the_caller(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with whom the server takes the caller for."""
    request = Request(scope, receive)
    await request.body()
    await JSONResponse({"caller": caller_of(request).name, "scheme": scope["scheme"]})(scope, receive, send)


@dataclass
class Served:
    """A running application and a client of it."""

    app: FastAPI
    client: httpx.AsyncClient
    predictor: FakePredictor

    @property
    def state(self) -> Any:
        return self.app.state

    @property
    def queued_plans(self) -> int:
        return queued_plans(self.app)

    async def predict(self, *texts: str, **body: Any) -> httpx.Response:
        return await self.client.post("/predict", json={"inputs": [{"text": t} for t in texts], **body})

    @asynccontextmanager
    async def occupied(
        self, predictor: FakePredictor | None = None, text: str = "a", *, requests: int = 1
    ) -> AsyncIterator[None]:
        """Hold the device with requests inside the block; after it, they are answered."""
        predictor = predictor or self.predictor
        predictor.hold()
        named = {} if predictor is self.predictor else {"artifact": predictor.artifact.name}
        running = [asyncio.create_task(self.predict(text, **named)) for _ in range(requests)]
        await asyncio.to_thread(predictor.entered.wait)
        await self.until(lambda: self.queued_plans >= requests)
        try:
            yield
        finally:
            predictor.released.set()
            answers = await asyncio.gather(*running)
        assert all(answer.status_code == 200 for answer in answers), answers

    def client_at(self, address: str) -> httpx.AsyncClient:
        """Return a client of the same application with an address of its own."""
        transport = httpx.ASGITransport(app=self.app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(GIVE_UP_S):
            while not condition():
                await asyncio.sleep(0.005)


class LeavingClient:
    """A request of a client that reads no answer to its end, and goes away once ``gone`` is set.

    Attributes:
        sent: the server's messages.
    """

    def __init__(self, method: str, path: str, body: bytes = b"") -> None:
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        self._scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": b""}
        self._scope |= {"headers": headers, "client": ("127.0.0.1", 1)}
        self._body, self.sent = [body], list[Any]()
        self.gone = asyncio.Event()

    async def call(self, app: FastAPI) -> None:
        await app(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message.get("body"):
            await self.gone.wait()


#: Each server's jobs in a folder of their own: no test is to find another's, or the user's.
_STATE = Path(tempfile.mkdtemp(prefix="laplora-tests-"))
atexit.register(shutil.rmtree, _STATE, ignore_errors=True)


def settings(**values: Any) -> Settings:
    own = {
        "artifact": "fake",
        "auth": "off",
        "artifacts_root": Path("no-artifacts"),
        "log_format": "text",
        "job_pause_s": 0.02,
    }
    return Settings(**{**own, "jobs_dir": _STATE / uuid.uuid4().hex, **values})


def library(*predictors: FakePredictor) -> Library:
    by_name = {p.artifact.name: p for p in predictors}

    def find(path: Path) -> FakePredictor:
        if path.name not in by_name:
            raise ArtifactCorruptError("its files are not what the manifest says")
        return by_name[path.name]

    return Library(load=lambda path, settings, progress: find(path), read=lambda path: find(path).artifact)  # type: ignore[arg-type,return-value]


@asynccontextmanager
async def started(app: FastAPI, *, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an application whose life has begun, by default once its artifacts answer."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1", timeout=None) as client,
    ):
        host = app.state.artifacts
        async with asyncio.timeout(GIVE_UP_S):
            while ready and host.active is None:
                assert not host.stage.startswith("failed"), host.stage
                await asyncio.sleep(0.005)
        yield client


@asynccontextmanager
async def serve(
    predictor: FakePredictor | None = None, *others: FakePredictor, wait: bool = True, **values: Any
) -> AsyncIterator[Served]:
    predictor = predictor or FakePredictor()
    app = create_app(settings(**values), library=library(predictor, *others))
    async with started(app, ready=wait) as client:
        served = Served(app, client, predictor)
        if wait:
            # The first pass of each predictive is the server's own.
            predictor.batches.clear()
            predictor.also.clear()
        try:
            yield served
        finally:
            predictor.released.set()


@asynccontextmanager
async def on_uvicorn(app: Any, **values: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """Yield uvicorn with an application and the server's own configuration, and the free port that it listens on."""
    config = server_config(app, settings(port=0, **values))
    config.lifespan = "off"
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(GIVE_UP_S):
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield server, server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await serving
