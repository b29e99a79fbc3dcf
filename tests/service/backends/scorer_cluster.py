"""Scorers of this process behind the ingress's backend: what travels is pickled, as over a network."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
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
    """Scorers by name, each with predictors of its own, called as over a network: what goes and comes is pickled."""

    folder: Path
    scorers: dict[str, Scorer] = field(default_factory=dict)
    predictors: dict[str, FakePredictor] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    #: What a call of a method raises in the place of its answer, once.
    failing: dict[str, Exception] = field(default_factory=dict)

    def add(self, name: str, **values: Any) -> FakePredictor:
        """Add a scorer with ``first``, and return its ``second``, which it has not loaded."""
        first, second = artifacts_in(self.folder / name, "first", "second")
        self.predictors[name] = first
        own = settings(artifact="first", artifacts_root=self.folder / name, **values)
        self.scorers[name] = Scorer(own, library(first, second), name)
        self.scorers[name].load_first()
        return second

    def present(self) -> frozenset[str]:
        return frozenset(self.scorers) - self.gone

    def add_real(self, name: str, known: Library, **values: Any) -> None:
        """Add a scorer with the artifacts of the cluster's folder."""
        self.scorers[name] = Scorer(settings(artifacts_root=self.folder, device="cpu", **values), known, name)
        self.scorers[name].load_first()

    async def call(self, replica: str, method: str, *arguments: Any) -> Any:
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


@asynccontextmanager
async def serving(
    cluster: Cluster, known: Library | None = None, **values: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Replicas]]:
    """Yield a client of an ingress over a cluster's scorers, and its backend; over fakes unless a library is given."""
    if known is None:
        (cluster.folder / "ingress").mkdir()
        encoders = library(*artifacts_in(cluster.folder / "ingress", "first", "second"))
        known = replace(encoders, encoder=encoders.load)
        values = {"artifact": "first", "artifacts_root": cluster.folder / "ingress", **values}
    made: list[Replicas] = []

    def backend(own: Any, its: Any, metrics: Any, on_batch: Any) -> Replicas:
        made.append(Replicas(own, its, cluster, on_batch=on_batch))
        return made[0]

    app = create_app(settings(**values), backend=backend, library=known)
    async with started(app) as client:
        yield client, made[0]
    for predictor in cluster.predictors.values():
        predictor.released.set()
