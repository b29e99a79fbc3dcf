"""Who gets a ticket, and what is tried again: the ingress's backend over scorers of this process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FakePredictor, artifacts_in, code, library, settings, started

from service.app import create_app
from service.backends.ray.autoscaling import TokensPolicy
from service.backends.ray.replicas import TRIES, ReplicaGoneError, Replicas
from service.backends.ray.scorer import Scorer
from service.telemetry.logs import EVENTS

pytestmark = pytest.mark.anyio


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

    def add(self, name: str, **values: Any) -> None:
        first, second = artifacts_in(self.folder / name, "first", "second")
        self.predictors[name] = first
        own = settings(artifact="first", artifacts_root=self.folder / name, **values)
        self.scorers[name] = Scorer(own, library(first, second), name)
        self.scorers[name].load_first()

    def present(self) -> frozenset[str]:
        return frozenset(self.scorers) - self.gone

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
async def serving(cluster: Cluster, **values: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Replicas]]:
    """Yield a client of an ingress over a cluster's scorers, and its backend."""
    (cluster.folder / "ingress").mkdir()
    encoders = library(*artifacts_in(cluster.folder / "ingress", "first", "second"))
    made: list[Replicas] = []

    def backend(own: Any, known: Any, metrics: Any, on_batch: Any) -> Replicas:
        made.append(Replicas(own, known, cluster, on_batch=on_batch))
        return made[0]

    own = settings(artifact="first", artifacts_root=cluster.folder / "ingress", **values)
    app = create_app(own, backend=backend, library=replace(encoders, encoder=encoders.load))
    async with started(app) as client:
        yield client, made[0]
    for predictor in cluster.predictors.values():
        predictor.released.set()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        cluster.add(name)
    return cluster


async def predict(client: httpx.AsyncClient, text: str = "a 12", **body: Any) -> httpx.Response:
    return await client.post("/predict", json={"inputs": [{"text": text}], **body})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_tickets_go_to_the_replica_with_the_fewest_tokens(cluster: Cluster) -> None:
    async with serving(cluster) as (client, _):
        cluster.predictors["a"].hold()
        cluster.predictors["b"].hold()
        long = asyncio.create_task(predict(client, "word " * 40))
        await until(lambda: len(cluster.answered_by()) == 1)
        short = [asyncio.create_task(predict(client)) for _ in range(3)]
        await until(lambda: len(cluster.answered_by()) == 4)
        (busy,) = cluster.answered_by()[:1]
        for predictor in cluster.predictors.values():
            predictor.released.set()
        assert {(await one).status_code for one in (long, *short)} == {200}
        assert busy not in cluster.answered_by()[1:]


async def test_a_ticket_goes_to_a_replica_that_has_the_artifact_and_a_new_one_gets_it(cluster: Cluster) -> None:
    async with serving(cluster) as (client, _):
        assert (await client.post("/artifacts/second/load")).status_code == 200
        (cluster.folder / "c").mkdir()
        cluster.add("c")
        for _ in range(3):
            assert (await predict(client, artifact="second")).status_code == 200
        assert "c" not in cluster.answered_by()
        await until(lambda: len(cluster.scorers["c"].status({}).digests) == 2)


@pytest.mark.parametrize("method", ["predict", "features"])
async def test_a_replica_that_is_gone_is_replaced_by_another(cluster: Cluster, method: str) -> None:
    async with serving(cluster) as (client, replicas):
        cluster.failing = dict.fromkeys("a", ReplicaGoneError())
        if method == "features":
            model = next(iter(replicas._models))
            ticket = pickle.loads(pickle.dumps(_ticket(model)))  # noqa: S301 its own
            with pytest.raises(Exception, match="structure"):
                await replicas.features(ticket)
        else:
            answers = [await predict(client) for _ in range(4)]
            assert {answer.status_code for answer in answers} == {200}
        assert cluster.gone == {"a"}


def _ticket(model: Any) -> Any:
    from service.scoring.ticket import Ask, Ticket

    return Ticket(model.artifact.digest, (model.encode({"text": "a"}, truncate=False),), (0,), Ask("laplace"), "me")


async def test_rows_that_end_replicas_are_given_up_after_two(cluster: Cluster) -> None:
    (cluster.folder / "c").mkdir()
    cluster.add("c")
    async with serving(cluster) as (client, _):
        cluster.failing = {name: ReplicaGoneError() for name in "abc"}
        assert code(await predict(client)) == (503, "device_fault")
        assert len(cluster.gone) == TRIES == 2
        cluster.failing.clear()
        assert (await predict(client)).status_code == 200


async def test_errors_come_whole_from_a_replica(cluster: Cluster) -> None:
    async with serving(cluster) as (client, _):
        for predictor in cluster.predictors.values():
            predictor.poison[777] = RuntimeError("CUDA out of memory")
        answer = await client.post("/predict", json={"inputs": [{"text": "a"}, {"text": "a 777"}]})
        assert code(answer) == (503, "device_memory")
        assert answer.json()["error"]["field"] == "inputs.1"


async def test_a_request_that_is_given_up_leaves_the_replica_and_its_room(cluster: Cluster) -> None:
    async with serving(cluster) as (client, replicas):
        for predictor in cluster.predictors.values():
            predictor.hold()
        answer = await predict(client, options={"timeout_s": 0.1})
        assert code(answer) == (504, "deadline_exceeded")
        await until(lambda: replicas.requests == 0 and replicas.backlog.held.rows == 0)
        await until(lambda: all(not scorer.local.queue.entries for scorer in cluster.scorers.values()))


async def test_the_room_grows_with_the_replicas_and_what_is_beyond_is_refused(cluster: Cluster) -> None:
    async with serving(cluster, max_queue_rows=4, max_inputs=4, client_share=1.0) as (client, replicas):
        await until(lambda: replicas._admission._limits.rows == 8)
        for predictor in cluster.predictors.values():
            predictor.hold()
        running = [asyncio.create_task(predict(client)) for _ in range(8)]
        await until(lambda: replicas.backlog.held.rows == 8)
        refused = await predict(client)
        assert code(refused) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        for predictor in cluster.predictors.values():
            predictor.released.set()
        assert {(await one).status_code for one in running} == {200}


async def test_without_a_replica_the_server_is_not_ready(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.backends.ray.replicas.SILENT_S", 2.0)
    async with serving(cluster) as (client, _):
        assert (await client.get("/health/ready")).status_code == 200
        cluster.gone = {"a", "b"}
        async with asyncio.timeout(60):
            while code_of_ready(answer := await client.get("/health/ready")) != (503, "device_stalled"):
                assert answer.status_code == 200
                await asyncio.sleep(0.05)


def code_of_ready(answer: httpx.Response) -> tuple[int, str] | None:
    return None if answer.status_code == 200 else code(answer)


def test_there_are_as_many_replicas_as_the_tokens_that_wait_need() -> None:
    class Context:
        def __init__(self, *tokens: float) -> None:
            self.aggregated_metrics = {TokensPolicy.METRIC: dict(enumerate(tokens))}

    policy = TokensPolicy(target_tokens=1000)
    assert [policy(Context(*tokens))[0] for tokens in ((), (0, 0), (500,), (2500, 500))] == [1, 1, 1, 3]


def test_what_the_backend_logs_is_listed() -> None:
    assert {"ticket_retried", "ray_started"} <= set(EVENTS)
