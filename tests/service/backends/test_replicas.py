"""Who gets a ticket, and what is tried again: the ingress's backend over scorers of this process."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_calls import JSONL, lines
from scorer_cluster import Cluster, Silence, predict, serving, until
from serving import changed, code

from service.backends.ray.autoscaling import TokensPolicy
from service.backends.ray.replicas import LOOK_S, TRIES, ReplicaGoneError
from service.errors import QueueFullError

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    for name in "ab":
        cluster.add(name)
    return cluster


async def ended(client: httpx.AsyncClient, rows: list[dict[str, str]]) -> Any:
    """Send a job and return it once it has ended."""
    sent = await client.post("/evaluate/jobs", content=lines(rows), headers=JSONL, params={"resamples": 10})
    async with asyncio.timeout(60):
        while (job := (await client.get(sent.headers["location"])).json())["status"] not in ("done", "failed"):
            await asyncio.sleep(0.01)
    return job


async def test_tickets_go_to_the_replica_with_the_fewest_tokens(cluster: Cluster) -> None:
    async with serving(cluster) as (client, _):
        cluster.hold()
        long = asyncio.create_task(predict(client, "word " * 40))
        await until(lambda: len(cluster.answered_by()) == 1)
        short = [asyncio.create_task(predict(client)) for _ in range(3)]
        await until(lambda: len(cluster.answered_by()) == 4)
        (busy,) = cluster.answered_by()[:1]
        cluster.release()
        assert {(await one).status_code for one in (long, *short)} == {200}
        assert busy not in cluster.answered_by()[1:]


async def test_a_ticket_goes_to_a_replica_that_has_the_artifact_and_a_new_one_gets_it(cluster: Cluster) -> None:
    async with serving(cluster) as (client, _):
        assert (await changed(client, "second/load")).status_code == 200
        loading = cluster.add("c")
        loading.hold()
        await until(loading.entered.is_set)
        for _ in range(6):
            assert (await predict(client, artifact="second")).status_code == 200
        assert set(cluster.answered_by()) == {"a", "b"}
        loading.released.set()
        async with asyncio.timeout(60):
            while "c" not in cluster.answered_by():
                assert (await predict(client, artifact="second")).status_code == 200


async def test_errors_come_whole_and_rows_that_end_replicas_are_given_up_after_two(cluster: Cluster) -> None:
    cluster.add("c")
    async with serving(cluster) as (client, _):
        for predictor in cluster.predictors.values():
            predictor.poison[777] = RuntimeError("CUDA out of memory")
        answer = await client.post("/predict", json={"inputs": [{"text": "a"}, {"text": "a 777"}]})
        assert code(answer) == (503, "device_memory")
        assert answer.json()["error"]["field"] == "inputs.1"
        cluster.failing = {name: ReplicaGoneError() for name in "abc"}
        assert code(await predict(client)) == (503, "device_fault")
        assert len(cluster.gone) == TRIES == 2
        cluster.failing.clear()
        assert (await predict(client)).status_code == 200


@pytest.mark.parametrize("bad", [0, 11, 137, 255])
async def test_a_row_of_a_job_that_ends_replicas_is_left_out_and_ends_few(cluster: Cluster, bad: int) -> None:
    """Two for the chunk of 256, two for its part of 16, and four for the row alone: as many as the halvings to it."""
    killed, calls = list[str](), 0

    async def lose(replica: str, method: str, *arguments: Any) -> Any:
        nonlocal calls
        calls += method == "predict"
        if method == "predict" and any(777 in row.token_ids for row in arguments[0].rows):
            killed.append(replica)
            raise ReplicaGoneError

    cluster.before = lose
    rows = [{"text": f"a {777 if number == bad else 12}", "label": "positive"} for number in range(300)]
    async with serving(cluster) as (client, _):
        job = await ended(client, rows)
    assert job["bad_rows"] == [{"line": bad + 1, "code": "device_fault"}]
    assert (job["rows_done"], job["result"]["rows"]) == (300, 299)
    assert len(killed) <= math.log2(256)
    assert calls < 80, "once it is found no row after its part is sent alone"


@pytest.mark.parametrize("losses", [2, 4])
async def test_a_row_whose_scorers_are_lost_after_the_queue_was_full_is_tried_again(
    losses: int, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another caller's row may have been why: a pause for the queue is no try of this one."""
    losing, filling = iter(range(losses)), iter(range(2))

    async def lose(replica: str, method: str, *arguments: Any) -> None:
        if method == "predict" and next(losing, None) is not None:
            raise ReplicaGoneError

    async with serving(cluster) as (client, replicas):
        enter = replicas.enter

        def refuse(*arguments: Any, **more: Any) -> None:
            if next(filling, None) is not None:
                raise QueueFullError("full")
            enter(*arguments, **more)

        monkeypatch.setattr(replicas, "enter", refuse)
        cluster.before = lose
        job = await ended(client, [{"text": "a 12", "label": "positive"}])
    left_out = [{"line": 1, "code": "device_fault"}] if losses == 4 else []
    assert (next(filling, None), next(losing, None), job["bad_rows"]) == (None, None, left_out)


async def test_a_load_waits_for_a_scorer_however_long_that_loads(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.backends.ray.replicas.WAIT_S", 0.0)
    async with serving(cluster) as (_, replicas):
        cluster.gone, stages = {"a", "b"}, list[str]()

        def load() -> Any:
            return replicas.load(cluster.folder / "ingress" / "second", lambda phase, stage: stages.append(stage))

        loading = asyncio.create_task(asyncio.to_thread(load))
        await until(lambda: loading.done() or stages.count("waiting for a scorer") == 3)
        cluster.gone = set()
        assert (await loading).artifact.name == "second"


async def test_the_room_grows_with_the_replicas_and_what_is_given_up_leaves_it(cluster: Cluster) -> None:
    async with serving(cluster, max_queue_rows=4, max_inputs=4, client_share=1.0) as (client, replicas):
        await until(lambda: replicas.backlog.most.rows == 8)
        cluster.hold()
        assert code(await predict(client, options={"timeout_s": 0.1})) == (504, "deadline_exceeded")
        await until(lambda: replicas.requests == 0 and replicas.backlog.held.rows == 0)
        await until(lambda: all(not scorer.local.queue.entries for scorer in cluster.scorers.values()))
        running = [asyncio.create_task(predict(client)) for _ in range(8)]
        await until(lambda: replicas.backlog.held.rows == 8)
        refused = await predict(client)
        assert code(refused) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        cluster.release()
        assert {(await one).status_code for one in running} == {200}


@pytest.mark.parametrize("how", ["gone", "silent"])
async def test_without_a_replica_the_server_is_not_ready_and_the_metrics_know(
    cluster: Cluster, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.backends.ray.replicas.SILENT_S", 1e6)
    silence = Silence(cluster)

    async def said(*names: str) -> dict[str, float]:
        lines = [line.split() for line in (await client.get("/metrics")).text.splitlines()]
        return {line[0]: float(line[1]) for line in lines if line[0] in names}

    names = ("laplora_ready", "laplora_queue_max_rows", "laplora_queue_max_tokens")
    async with serving(cluster, max_queue_rows=300, max_queue_tokens=1000, max_inputs=100) as (client, replicas):
        for live, rows in ((2, 600), (1, 300)):
            await until(lambda rows=rows: replicas.backlog.most.rows == rows)  # type: ignore[misc]
            assert await said(*names) == dict(zip(names, (1, rows, 1000 * live), strict=True))
            assert (await client.get("/health/ready")).status_code == 200
            if how == "silent":
                silence.replicas = {"a", "b"}
                monkeypatch.setattr("service.backends.ray.replicas.SILENT_S", 0.2)
                break
            cluster.gone.add("ab"[live - 1])
        async with asyncio.timeout(60):
            while (answer := await client.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.05)
        assert code(answer) == (503, "device_stalled")
        assert await said("laplora_ready") == {"laplora_ready": 0}


async def test_what_a_silent_replica_has_goes_to_one_that_answers(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process was stopped, say, or its node cut off: Ray takes minutes to see that."""
    monkeypatch.setattr("service.backends.ray.replicas.SILENT_S", 3.0)
    silence = Silence(cluster)
    async with serving(cluster) as (client, replicas):
        await until(lambda: len(replicas.statuses) == 2)
        silence.replicas = {"a"}
        answers = await asyncio.gather(*(predict(client) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert ("a", "predict") in silence.asked
        silence.asked.clear()
        for _ in range(4):
            assert (await predict(client)).status_code == 200
        assert ("a", "predict") not in silence.asked
        assert (await changed(client, "second/load")).status_code == 200, "what answers has loaded it"
        silence.replicas = set()
        silence.over.set()
        await until(lambda: cluster.holds("a") == {"first", "second"})


async def test_a_replica_that_never_answers_a_look_keeps_neither_looks_nor_loads_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.backends.ray.replicas.SILENT_S", 1e6)
    silence = Silence(cluster, "a", method="status")
    async with serving(cluster) as (client, _):
        before = cluster.answered_by("status").count("b")
        await until(lambda: cluster.answered_by("status").count("b") > before + 3)
        silence.method = ""
        monkeypatch.setattr("service.backends.ray.replicas.SILENT_S", 3.0)
        assert (await changed(client, "second/load")).status_code == 200
        assert {(await predict(client, artifact="second")).status_code for _ in range(4)} == {200}
        assert cluster.answered_by() == ["b"] * 4


async def test_the_only_replica_is_waited_for_though_it_is_silent(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.backends.ray.replicas.SILENT_S", 1.0)
    silence = Silence(cluster, method="status")
    cluster.gone = {"b"}
    async with serving(cluster) as (client, replicas):
        cluster.predictors["a"].hold()
        answer = asyncio.create_task(predict(client))
        await until(cluster.predictors["a"].entered.is_set)
        silence.replicas = {"a"}
        await until(lambda: replicas._replicas["a"].silent)
        await asyncio.sleep(2 * LOOK_S)
        assert not answer.done()
        cluster.predictors["a"].released.set()
        assert (await answer).status_code == 200


async def test_a_batch_is_counted_once_whichever_answer_is_lost(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, losing, counted = cluster.call, iter(range(3)), list[Any]()

    async def lose(replica: str, method: str, *arguments: Any) -> Any:
        answer = await call(replica, method, *arguments)
        if method == "status" and answer.batches and next(losing, None) is not None:
            raise ReplicaGoneError
        return answer

    monkeypatch.setattr(cluster, "call", lose)
    async with serving(cluster) as (client, replicas):
        replicas._on_batch = (counted.append,)
        for _ in range(5):
            assert (await predict(client)).status_code == 200
        await until(lambda: len(counted) == 5)
        looks = len(cluster.answered_by("status"))
        await until(lambda: len(cluster.answered_by("status")) > looks + 3)
    assert (len(counted), next(losing, None)) == (5, None)


async def test_a_replica_whose_device_stalls_gets_no_ticket_and_all_such_are_not_ready(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for name in "ab":
        cluster.add(name, stall_s=0.1, hang_s=3600)
    async with serving(cluster) as (client, replicas):
        await until(lambda: len(replicas.statuses) == 2)
        running = []
        cluster.hold()
        for count in (1, 2):
            running.append(asyncio.create_task(predict(client, "word " * 40)))
            await until(lambda count=count: sum(one.stalled for one in replicas.statuses) == count)  # type: ignore[misc]
        assert sorted(cluster.answered_by()) == ["a", "b"]
        assert code(await client.get("/health/ready")) == (503, "device_stalled")
        cluster.release()
        assert {(await one).status_code for one in running} == {200}
        await until(lambda: not any(one.stalled for one in replicas.statuses))
        assert (await client.get("/health/ready")).status_code == 200


async def test_a_scorer_of_which_more_is_wanted_than_it_has_places_for_loads_nothing_anew(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.add("a", max_artifacts=1)
    for _ in range(5):
        wanted = {f"sha256:{name}": str(tmp_path / "a" / name) for name in cluster.artifacts}
        assert cluster.scorers["a"].status(wanted).digests == {"sha256:first"}
        await asyncio.sleep(0.02)
    assert cluster.loads["a"] == ["first"]


async def test_a_version_that_nobody_waits_for_ends(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, entered, over = cluster.scorers["a"], threading.Event(), threading.Event()

    def learn(*arguments: Any, go_on: Callable[[], None]) -> None:
        entered.set()
        try:
            while True:
                go_on()
                time.sleep(0.005)
        finally:
            over.set()

    monkeypatch.setattr(scorer.local, "make_version", learn)
    making = asyncio.create_task(scorer.make_version("sha256:first", str(cluster.folder / "a/first"), None))
    await until(entered.is_set)
    making.cancel()
    await until(over.is_set)


def test_there_are_as_many_replicas_as_the_tokens_that_wait_need() -> None:
    class Context:
        def __init__(self, *tokens: float) -> None:
            self.aggregated_metrics = {TokensPolicy.METRIC: dict(enumerate(tokens))}

    policy = TokensPolicy(target_tokens=1000)
    assert [policy(Context(*tokens))[0] for tokens in ((), (0, 0), (500,), (2500, 500))] == [1, 1, 1, 3]
