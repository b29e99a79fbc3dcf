"""An artifact on another base model: no scorer has two in memory where there are several, and no request is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import httpx
import pytest
from scorer_cluster import Cluster, Flow, serving, until
from serving import FakePredictor, artifacts_in, changed, code, settings

from laplora.errors import GoldenMismatchError
from laplora.models.base import BaseSpec
from service.artifacts.predictors import Library
from service.artifacts.token_budget import meter_of
from service.backends.ray import held, placement
from service.backends.ray.scorer import Scorer
from service.scoring.model import TokenBudget

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

BASES = {"first": BaseSpec("one"), "again": BaseSpec("one"), "second": BaseSpec("another")}


class Disk:
    """Artifacts on several bases, loaded anew each time, and how many bases were in memory at once.

    ``gate`` lets loads of ``second`` begin; ``error`` is what its golden answers meet; ``circles``: what is loaded
    holds itself, as models do.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root, self.alive, self.most_bases = root, WeakSet[FakePredictor](), 0
        self.loads, self.gate, self.waiting = list[str](), threading.Event(), threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.circles = False
        artifacts_in(root, *BASES)

    def make(self, path: Path) -> FakePredictor:
        made = FakePredictor(path.name, path=path)
        made.base = made.artifact.manifest.base = BASES[path.name]
        return made

    def load(self, path: Path, *more: Any) -> FakePredictor:
        self.loads.append(path.name)
        if path.name == "second":
            self.waiting.set()
            self.gate.wait()
        made = self.make(path)
        made.golden_error = self.error if path.name == "second" else None
        if self.circles:
            made.itself = made  # type: ignore[attr-defined]
        self.alive.add(made)
        self.most_bases = max(self.most_bases, len({one.base for one in self.alive}))
        return made

    @property
    def library(self) -> Library:
        read: Any = lambda path: self.make(path).artifact  # noqa: E731
        encoder: Any = lambda path, *more: self.make(path)  # noqa: E731
        load: Any = self.load
        return Library(load=load, read=read, encoder=encoder)


def cluster_of(folder: Path, names: str, *, circles: bool = False) -> tuple[Cluster, dict[str, Disk]]:
    cluster, disks = Cluster(folder), {name: Disk(folder / name) for name in names}
    for name, disk in disks.items():
        disk.circles = circles
        own = settings(artifact="first", artifacts_root=disk.root)
        cluster.scorers[name] = Scorer(own, disk.library, name)
        cluster.scorers[name].load_first()
    return cluster, disks


@asynccontextmanager
async def server(cluster: Cluster, disks: dict[str, Disk]) -> AsyncIterator[httpx.AsyncClient]:
    ingress = Disk(cluster.folder / "ingress")
    async with serving(cluster, ingress.library, artifact="first", artifacts_root=ingress.root) as (client, _):
        try:
            yield client
        finally:  # a load that waits when a test fails would never end
            for disk in disks.values():
                disk.gate.set()


@asynccontextmanager
async def activating(client: httpx.AsyncClient, disks: dict[str, Disk]) -> AsyncIterator[str]:
    """Activate ``second``; yield the scorer that goes ahead, whose load has begun and ends after the block."""
    for disk in disks.values():
        disk.gate.clear()
    changing = asyncio.create_task(changed(client, "second/activate"))
    await until(lambda: any(disk.waiting.is_set() for disk in disks.values()))
    (ahead,) = [name for name, disk in disks.items() if disk.waiting.is_set()]
    yield ahead
    disks[ahead].gate.set()
    assert (await changing).status_code == 200


async def test_one_scorer_goes_ahead_and_the_others_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "LEFT_S", 2.0)
    cluster, disks = cluster_of(tmp_path, "abc", circles=True)
    async with server(cluster, disks) as client:
        assert (await changed(client, "again/load")).status_code == 200
        flow = Flow(client)
        async with activating(client, disks) as ahead:
            await flow.goes_on()
            assert cluster.holds(ahead) == set(), "it let go of what it had first"
            assert [cluster.holds(name) for name in "abc" if name != ahead] == [{"first", "again"}] * 2
        await flow.goes_on()
        for disk in disks.values():
            disk.gate.set()
        await until(lambda: all(cluster.holds(name) == {"second"} for name in "abc"))
        await flow.goes_on()
        assert {*await flow.end()} == {"first", "second"}
    assert {disk.most_bases for disk in disks.values()} == {1}


async def test_one_that_cannot_be_served_leaves_the_cluster_as_it_was(tmp_path: Path) -> None:
    cluster, disks = cluster_of(tmp_path, "ab")
    for disk in disks.values():
        disk.error = GoldenMismatchError("recorded 0.5, got 0.7")
    async with server(cluster, disks) as client:
        flow = Flow(client)
        refused = await changed(client, "second/activate")
        assert code(refused) == (409, "golden_mismatch")
        await until(lambda: all(cluster.holds(name) == {"first"} for name in "ab"))
        assert {*await flow.end()} == {"first"}
    assert sum(disk.loads.count("second") for disk in disks.values()) == 1
    assert {disk.most_bases for disk in disks.values()} == {1}


async def test_a_single_scorer_answers_while_it_loads_the_other_base_beside(tmp_path: Path) -> None:
    cluster, disks = cluster_of(tmp_path, "a")
    async with server(cluster, disks) as client:
        flow = Flow(client)
        async with activating(client, disks):
            await flow.goes_on()
        await flow.goes_on()
        assert {*await flow.end()} == {"first", "second"}
    assert disks["a"].loads == ["first", "second"]


@contextmanager
def scorer_on(disk: Disk, *, meter: Any = meter_of, **values: Any) -> Iterator[Scorer]:
    """Yield a scorer of its own, which has loaded what it loads first."""
    own = settings(artifact="first", artifacts_root=disk.root, **values)
    scorer = Scorer(own, replace(disk.library, meter=meter), "a")
    try:
        scorer.load_first()
        yield scorer
    finally:
        scorer.local.stop(join_timeout_s=60)


@pytest.mark.usefixtures("whole_heap")
@pytest.mark.parametrize("most", [1, 2], ids=["for another", "unwanted"])
async def test_what_goes_leaves_the_memory_though_it_was_left_out_of_collections(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path / "a")
    disk.circles = True
    with scorer_on(disk, max_artifacts=most) as scorer:
        gc.freeze()
        try:
            folder = str(disk.root / "again")
            assert (await scorer.load("sha256:again", folder)).error is None
            monkeypatch.setattr(held, "UNWANTED_S", 0.0)
            await until(lambda: scorer.status({"sha256:again": folder}).digests == {"sha256:again"})
            await until(lambda: {one.artifact.name for one in disk.alive} == {"again"})
            await until(lambda: gc.get_freeze_count() > 0)
        finally:
            gc.unfreeze()


async def test_batches_are_measured_again_once_the_former_base_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path / "a")
    disk.circles = True

    def measured(*arguments: Any, **more: Any) -> TokenBudget:
        return TokenBudget(1000 // len({one.base for one in disk.alive}), "of a test")

    monkeypatch.setattr("service.backends.loading.measure_budget", measured)
    with scorer_on(disk, meter=lambda predictor: "of a test", batch_tokens=None) as scorer:
        folder = str(disk.root / "second")
        assert (await scorer.load("sha256:second", folder, True)).error is None
        assert scorer.local.batch_tokens == 500
        monkeypatch.setattr(held, "UNWANTED_S", 0.0)
        await until(lambda: scorer.status({"sha256:second": folder}).digests == {"sha256:second"})
        await until(lambda: scorer.local.batch_tokens == 1000)
