"""More artifacts than one scorer holds: each has its place, one that is missing comes, none that is in use goes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from scorer_cluster import Cluster, Flow, Silence, predict, serving, until
from serving import changed

from service.backends.ray.in_line import FIRST_PAUSE_S

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NAMES = ("first", "second", "third", "fourth")


def cluster_of(folder: Path, scorers: str, *, most: int, artifacts: tuple[str, ...] = NAMES) -> Cluster:
    cluster = Cluster(folder, artifacts=artifacts, most=most)
    for name in scorers:
        cluster.add(name)
    return cluster


async def load(client: httpx.AsyncClient, *artifacts: str) -> None:
    for artifact in artifacts:
        assert (await changed(client, f"{artifact}/load")).status_code == 200


async def test_each_scorer_has_its_share_and_others_take_over_that_of_one_that_goes(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "ab", most=2)
    looks = Silence(cluster, *"ab", method="status")
    async with serving(cluster) as (client, _):

        async def ask(name: str) -> None:
            assert (await predict(client, artifact=name)).json()["artifact"]["name"] == name

        await load(client, *NAMES[1:3])
        looks.over.set()
        await until(lambda: cluster.holds("b") == {"first", "third"} and cluster.calls.count(("a", "status")) > 1)
        looks.over.clear()
        await load(client, "fourth")  # the first goes from "a" for it, and no look says so
        for name in NAMES * 3:
            await ask(name)
            assert (cluster.holds("a"), cluster.holds("b")) == ({"second", "fourth"}, {"first", "third"})
        assert cluster.answered_by() == [*"baba"] * 3
        cluster.gone = {"a"}
        for name in NAMES * 2:
            await ask(name)
            assert name in cluster.holds("b"), "loaded where it is asked for"
            assert len(cluster.holds("b")) <= 2
        looks.over.set()
        for name in NAMES[:2] * 10:
            await ask(name)
        await until(lambda: cluster.holds("b") == set(NAMES[:2]))
        cluster.add("c")
        await until(lambda: cluster.holds("b") | cluster.holds("c") == set(NAMES))
        for name in NAMES:
            await ask(name)
        assert {one: len(cluster.holds(one)) for one in "bc"} == {"b": 2, "c": 2}


async def test_what_is_in_use_stays_and_of_those_that_wait_for_its_place_one_asks(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "a", most=1, artifacts=("first", "second"))
    async with serving(cluster) as (client, _):
        await load(client, "second")
        used = cluster.by_artifact["a"]["second"]
        used.hold()
        running = asyncio.create_task(predict(client, artifact="second"))
        await until(used.entered.is_set)
        loads, asked = list(cluster.loads["a"]), len(cluster.answered_by())
        waiting = [asyncio.create_task(predict(client, artifact="first")) for _ in range(20)]
        await until(lambda: len(cluster.answered_by()) >= asked + 25)  # it asks again and again
        begun, asked = time.monotonic(), len(cluster.answered_by())
        await until(lambda: len(cluster.answered_by()) >= asked + 3)
        assert time.monotonic() - begun > 3 * FIRST_PAUSE_S, "all asking at once would be twenty in each pause"
        assert (cluster.holds("a"), cluster.loads["a"]) == ({"second"}, loads)
        used.released.set()
        assert {(await one).status_code for one in (running, *waiting)} == {200}
        assert cluster.holds("a") == {"first"}


async def test_a_load_makes_place_where_others_have_a_copy_elsewhere(tmp_path: Path) -> None:
    """Both hold the one artifact and answer all the time: one of them gets no more of it, and so has a place."""
    cluster = cluster_of(tmp_path, "ab", most=1, artifacts=("first", "second"))
    async with serving(cluster) as (client, _):
        flow = Flow(client)
        await until(lambda: len(set(cluster.answered_by())) == 2)
        await load(client, "second")
        assert sorted(map(sorted, map(cluster.holds, "ab"))) == [["first"], ["second"]]
        assert (await predict(client, artifact="second")).status_code == 200
        await flow.end()


async def test_a_load_waits_for_a_place_while_all_others_are_asked_for(tmp_path: Path) -> None:
    cluster = cluster_of(tmp_path, "a", most=2, artifacts=NAMES[:3])
    async with serving(cluster) as (client, _):
        await load(client, "second")
        used = [cluster.by_artifact["a"][name] for name in NAMES[:2]]
        for one in used:
            one.hold()
        running = [asyncio.create_task(predict(client, artifact=name)) for name in NAMES[:2]]
        await until(lambda: any(one.entered.is_set() for one in used) and len(cluster.answered_by()) == 2)
        loading = asyncio.create_task(load(client, "third"))
        asked = len(cluster.answered_by("load"))
        for tries in range(1, 5):  # more than a load is tried where scorers are lost
            await until(lambda tries=tries: loading.done() or len(cluster.answered_by("load")) >= asked + tries)  # type: ignore[misc]
            assert not loading.done(), loading.exception()
            running += [asyncio.create_task(predict(client, artifact=name)) for name in NAMES[:2]]
        for one in used:
            one.released.set()
        await loading
        assert "third" in cluster.loads["a"]
        assert {(await one).status_code for one in running} == {200}
