"""Feedback in the database of jobs: it outlives its server, and what the database does not take is not lost."""

from __future__ import annotations

import json
from base64 import b85encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from serving import FakePredictor, library, settings, started
from sqlalchemy import select, update
from test_feedback import SECRET, Kept

from service.app import create_app
from service.deployment import answers
from service.errors import JobsUnavailableError, StorageFullError
from service.feedback.records import StoredPrediction
from service.jobs.store.database import Database
from service.jobs.store.schema import ANSWERS, make_tables

pytestmark = pytest.mark.anyio


async def ids_of(client: httpx.AsyncClient, *texts: str) -> list[str]:
    answer = await client.post("/predict", json={"inputs": [{"text": one} for one in texts]})
    return [one["prediction_id"] for one in answer.json()["predictions"]]


async def told(client: httpx.AsyncClient, **labels: str) -> list[str]:
    items = [{"prediction_id": one, "label": label} for one, label in labels.items()]
    response = await client.post("/feedback", json={"items": items})
    assert response.status_code == 200, response.text
    return [one["status"] for one in response.json()["results"]]


async def figures(client: httpx.AsyncClient) -> tuple[int, float, float]:
    """Return how many are labelled, their accuracy and NLL."""
    (series,) = (await client.get("/feedback")).json()["series"]
    metrics = series["figures"]
    return series["labelled"], metrics["accuracy"]["value"], round(metrics["nll"]["value"], 9)


class Deployment:
    """Starts servers in this process, one after the other, on one jobs folder."""

    def __init__(self, path: Path) -> None:
        self.jobs_dir = path / "jobs"

    @asynccontextmanager
    async def server(self, **values: Any) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
        app = create_app(settings(jobs_dir=self.jobs_dir, **values), library=library(FakePredictor()))
        async with started(app) as client:
            yield app, client


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


async def test_ids_labels_and_figures_outlive_their_server(deployment: Deployment) -> None:
    async with deployment.server() as (_, client):
        one, two, three = await ids_of(client, f"{SECRET} 70000", "b 20000", "c 3")
        assert await told(client, **{one: "negative", two: "negative"}) == ["recorded", "recorded"]
        before = await figures(client)
    kept = (deployment.jobs_dir / "laplora-jobs").rglob("*")
    assert not [path for path in kept if path.is_file() and SECRET.encode() in path.read_bytes()]
    async with deployment.server() as (_, client):
        await client.post("/predict", json={"inputs": [{"text": "d 4"}]})
        assert await told(client, **{one: "negative", three: "positive"}) == ["repeated", "recorded"]
        assert await told(client, **{two: "positive"}) == ["corrected"]
        after = await figures(client)
        assert (before[0], after[0]) == (2, 3)
    async with deployment.server() as (_, client):
        await client.post("/predict", json={"inputs": [{"text": "d 4"}]})
        assert await told(client, **{two: "positive", "not-an-id": "positive"}) == ["repeated", "unknown"]
        assert await figures(client) == after
    async with deployment.server(deployment="another") as (_, client):
        assert await told(client, **{one: "negative"}) == ["unknown"]


async def test_age_and_number_are_bounded_in_the_database_too(tmp_path: Path) -> None:
    kept, database = Kept(), Database.in_file(tmp_path / "database")
    with database.transaction() as connection:
        make_tables(connection)
    made = list[str]()
    for kept.now in (900.0, 950.0, 990.0, 1000.0):
        made += kept.remember(int(kept.now))
    for _ in range(2):  # a call whose answer was lost is made once more
        answers.keep(database, "one", kept.store.unsaved, kept.store.clock)

    def found() -> list[str]:
        return sorted(answers.find(database, "one", made, kept.store.clock), key=made.index)

    assert found() == made
    answers.prune(database, "another", 0.0, 0)
    answers.prune(database, "one", 75.0, 100)
    assert found() == made[1:]
    answers.prune(database, "one", 75.0, 2)
    assert found() == made[2:]
    for is_old in (False, True):
        if is_old:  # earlier versions wrote numbers in base 85
            with database.transaction() as connection:
                mine = ANSWERS.c.id == made[3]
                record: list[Any] = json.loads(connection.execute(select(ANSWERS.c.record).where(mine)).scalar_one())
                record[4] = b85encode(bytes.fromhex(record[4])).decode()
                connection.execute(update(ANSWERS).where(mine).values(record=json.dumps(record)))
        back = answers.find(database, "one", made[3:], kept.store.clock)[made[3]]
        assert back.answered == pytest.approx(1000.0, abs=5.0)
        before = vars_of(kept.store.find(made[3]) or back)
        assert vars_of(back) | {"answered": 0} == before | {"answered": 0}
    database.close()


def test_a_corrected_label_keeps_its_place_and_one_that_left_the_window_does_not_come_back() -> None:
    kept = Kept(window=100)
    first = kept.remember(*range(10, 160))
    kept.give(first, "negative")
    before = kept.shown()
    assert set(kept.give(first[:50], "positive")) == {"corrected"}
    assert kept.shown().figures == before.figures
    kept.give(first[60:70], "positive")
    assert kept.shown().figures != before.figures


def test_another_server_has_the_same_window_also_when_it_begins_later(tmp_path: Path) -> None:
    database, made = Database.in_file(tmp_path / "database"), Kept(window=100)
    with database.transaction() as connection:
        make_tables(connection)
    ids = made.remember(*range(10, 160))
    answers.keep(database, "one", made.store.unsaved, made.store.clock)

    def give(some: list[str], label: str) -> None:
        made.give(some, label)
        right = {one: made.store.find(one).right for one in some}  # type: ignore[union-attr]
        answers.label(database, "one", right)  # type: ignore[arg-type]

    give(ids, "negative")
    give(ids[:60], "positive")
    # A server that begins reads first labels in their order.
    later, after = Kept(window=100), 0
    later.remember(5)
    while (page := answers.labelled(database, "one", after, later.store.clock, by_first=True))[0] > after:
        after = page[0]
        later.store.take((one, prediction, True) for one, prediction, _ in page[1])
    assert after == 150
    assert answers.last_told(database, "one") == 210
    assert later.shown().figures == made.shown().figures
    # Labelled answers are not pushed out by those without a label.
    many = made.remember(*range(10, 210))
    answers.keep(database, "one", list(made.store.unsaved)[-200:], made.store.clock)
    made.now += 1.0
    many += made.remember(*range(10, 60))
    answers.keep(database, "one", list(made.store.unsaved)[-50:], made.store.clock)
    answers.prune(database, "one", 1000.0, 50)
    assert len(answers.find(database, "one", ids, made.store.clock)) == 150
    assert set(answers.find(database, "one", many, made.store.clock)) == set(many[200:])
    # A row that cannot be read is left out, and the others are not.
    with database.transaction() as connection:
        connection.execute(update(ANSWERS).where(ANSWERS.c.id == ids[0]).values(record="[]"))
    assert len(answers.find(database, "one", ids, made.store.clock)) == 149
    database.close()


def vars_of(one: StoredPrediction) -> dict[str, Any]:
    return {name: getattr(one, name) for name in StoredPrediction.__slots__}


async def test_what_the_database_does_not_take_is_written_later(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: Any) -> Any:
            if away:
                raise JobsUnavailableError("the database does not answer")
            return function(*arguments)

        return maybe

    async with deployment.server() as (app, client):
        with monkeypatch.context() as patch:
            for name in ("keep", "find", "label", "labelled"):
                patch.setattr(answers, name, failing(getattr(answers, name)))
            (one,) = await ids_of(client, "a 7")
            assert await told(client, **{one: "negative"}) == ["recorded"]
            assert await told(client, **{one: "negative"}) == ["repeated"]
            assert await rows(app) == []
            away = False
            assert await told(client, **{one: "positive"}) == ["corrected"]
            with monkeypatch.context() as full:
                full.setattr(answers, "label", lambda *_: (_ for _ in ()).throw(StorageFullError("full")))
                for label in ("negative", "positive"):  # what is not written yet counts more than what is
                    assert await told(client, **{one: label}) == ["corrected"]
                # What is not written yet counts more than what is.
                assert await told(client, **{one: "negative"}) == ["corrected"]
            assert await told(client, **{one: "positive"}) == ["corrected"]
        assert [row[0] for row in await rows(app)] == [one]
    async with deployment.server() as (_, client):
        assert await told(client, **{one: "positive"}) == ["repeated"]


async def rows(app: FastAPI) -> list[tuple[Any, ...]]:
    disk = app.state.jobs.ledger.disk

    def read(database: Database) -> list[tuple[Any, ...]]:
        with database.transaction() as connection:
            return [tuple(row) for row in connection.execute(select(ANSWERS.c.id, ANSWERS.c.right))]

    return await disk.in_database(read, disk.tables.database)  # type: ignore[no-any-return]
