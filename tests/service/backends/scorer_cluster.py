"""Scorers of this process behind the ingress's backend: what travels is pickled, as over a network."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from serving import FakePredictor, artifacts_in, library, settings, started

from service.app import create_app
from service.artifacts.predictors import Library
from service.backends.ray.replicas import Replicas
from service.backends.ray.scorer import Scorer


@dataclass
class Cluster:
    """Scorers by name, each with predictors of its own, called as over a network: what goes and comes is pickled.

    Each has ``artifacts`` on its disk.
    """

    folder: Path
    artifacts: tuple[str, ...] = ("first", "second")
    scorers: dict[str, Scorer] = field(default_factory=dict)
    predictors: dict[str, FakePredictor] = field(default_factory=dict)
    by_artifact: dict[str, dict[str, FakePredictor]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    #: By scorer, the artifacts that it loaded, in order.
    loads: dict[str, list[str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    #: What a call of a method raises in the place of its answer, once.
    failing: dict[str, Exception] = field(default_factory=dict)
    #: Called before each call with the replica, the method and its arguments: may wait, or raise.
    before: Callable[..., Awaitable[None]] | None = None

    def add(self, name: str, **values: Any) -> FakePredictor:
        """Add a scorer with ``first``, and return its ``second``, which it has not loaded."""
        (self.folder / name).mkdir()
        predictors = artifacts_in(self.folder / name, *self.artifacts)
        self.predictors[name] = predictors[0]
        self.by_artifact[name] = dict(zip(self.artifacts, predictors, strict=True))
        own = settings(artifact="first", artifacts_root=self.folder / name, **values)
        known, loads = library(*predictors), self.loads.setdefault(name, [])

        def load(path: Path, *more: Any) -> Any:
            loads.append(path.name)
            return known.load(path, *more)

        self.scorers[name] = Scorer(own, replace(known, load=load), name)
        self.scorers[name].load_first()
        return predictors[1]

    def holds(self, name: str) -> set[str]:
        """Return the artifacts that a scorer has loaded."""
        return {digest.removeprefix("sha256:") for digest in self.scorers[name]._held.digests}

    def present(self) -> frozenset[str]:
        return frozenset(self.scorers) - self.gone

    def add_real(self, name: str, known: Library, **values: Any) -> None:
        """Add a scorer with the artifacts of the cluster's folder."""
        self.scorers[name] = Scorer(settings(artifacts_root=self.folder, device="cpu", **values), known, name)
        self.scorers[name].load_first()

    def hold(self) -> None:
        """Hold every scorer's first artifact."""
        for predictor in self.predictors.values():
            predictor.hold()

    def release(self) -> None:
        """Release what ``hold`` holds."""
        for predictor in self.predictors.values():
            predictor.released.set()

    async def call(self, replica: str, method: str, *arguments: Any) -> Any:
        if self.before is not None:
            await self.before(replica, method, *arguments)
        name = replica if replica in self.present() else min(self.present())
        self.calls.append((name, method))
        if error := self.failing.pop(name, None):
            self.gone.add(name)
            raise error
        answer = getattr(self.scorers[name], method)(*pickle.loads(pickle.dumps(arguments)))  # noqa: S301 its own
        answer = await answer if asyncio.iscoroutine(answer) else answer
        return pickle.loads(pickle.dumps(answer))  # noqa: S301 its own

    def answered_by(self, method: str = "predict") -> list[str]:
        return [name for name, called in self.calls if called == method]


class Silence:
    """Lets ``replicas`` answer no call, or none of one method, until it is ``over``; notes every call in ``asked``."""

    def __init__(self, cluster: Cluster, *replicas: str, method: str = "") -> None:
        self.replicas, self.over, self.asked = {*replicas}, asyncio.Event(), list[tuple[str, str]]()
        self.method = method
        cluster.before = self

    async def __call__(self, replica: str, method: str, *arguments: Any) -> None:
        self.asked.append((replica, method))
        if replica in self.replicas and method.startswith(self.method):
            await self.over.wait()


@asynccontextmanager
async def serving(
    cluster: Cluster, known: Library | None = None, **values: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Replicas]]:
    """Yield a client of an ingress over a cluster's scorers, and its backend; over fakes unless a library is given."""
    if known is None:
        (cluster.folder / "ingress").mkdir()
        encoders = library(*artifacts_in(cluster.folder / "ingress", *cluster.artifacts))
        known = replace(encoders, encoder=encoders.load)
        values = {"artifact": "first", "artifacts_root": cluster.folder / "ingress", **values}
    made: list[Replicas] = []

    def backend(own: Any, its: Any, metrics: Any, on_batch: Any) -> Replicas:
        made.append(Replicas(own, its, cluster, on_batch=on_batch))
        return made[0]

    app = create_app(settings(**values), backend=backend, library=known)
    async with started(app) as client:
        yield client, made[0]
    for predictors in cluster.by_artifact.values():
        for predictor in predictors.values():
            predictor.released.set()


async def predict(client: httpx.AsyncClient, text: str = "a 12", **body: Any) -> httpx.Response:
    return await client.post("/predict", json={"inputs": [{"text": text}], **body})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Flow:
    """Requests that come all the time, and which artifacts answered."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.answers, self._over = list[httpx.Response](), asyncio.Event()
        self._senders = [asyncio.create_task(self._send(client)) for _ in range(4)]

    async def _send(self, client: httpx.AsyncClient) -> None:
        while not self._over.is_set():
            self.answers.append(await predict(client))

    async def end(self) -> list[str]:
        self._over.set()
        await asyncio.gather(*self._senders)
        assert {answer.status_code for answer in self.answers} == {200}
        return [answer.json()["artifact"]["name"] for answer in self.answers]

    async def goes_on(self) -> None:
        count = len(self.answers) + 20
        await until(lambda: len(self.answers) > count)
