"""Labels at servers that are processes and share a PostgreSQL: each answer's at any of them, also of one that died."""

from __future__ import annotations

import signal
import time
from typing import Any

import httpx
import pytest
from job_servers import Servers
from server_process import until

from service.deployment import answers
from service.jobs.store.database import Database

pytestmark = pytest.mark.process


def answered(client: httpx.Client, *texts: str) -> list[str]:
    answer = client.post("/predict", json={"inputs": [{"text": one} for one in texts]}).json()
    return [one["prediction_id"] for one in answer["predictions"]]


def told(client: httpx.Client, **labels: str) -> list[str]:
    items = [{"prediction_id": one, "label": label} for one, label in labels.items()]
    results: list[dict[str, Any]] = client.post("/feedback", json={"items": items}).json()["results"]
    return [one["status"] for one in results]


def labelled(client: httpx.Client) -> tuple[int, float | None, float | None]:
    """Return how many are labelled, their accuracy and NLL; no figures before one is."""
    (series,) = client.get("/feedback").json()["series"]
    if (figures := series["figures"]) is None:
        return series["labelled"], None, None
    return series["labelled"], figures["accuracy"]["value"], round(figures["nll"]["value"], 9)


def test_a_label_finds_its_answer_at_every_server(servers: Servers, url: str) -> None:
    servers.environment["LAPLORA_JOBS_URL"] = url
    first, second = servers.start("--job-lease-s", "1"), servers.start("--job-lease-s", "1")
    with first.client() as one, second.client() as other:
        # At once: the first server has perhaps not written it yet.
        a, b, c = answered(one, "a 70000", "b 20000", "c 3")
        answered(other, "d 4")
        assert told(other, **{a: "negative", b: "negative"}) == ["recorded", "recorded"]
        assert told(one, **{a: "negative"}) == ["repeated"]
        assert told(one, **{b: "positive"}) == ["corrected"]
        until(lambda: labelled(one) == labelled(other))
        assert labelled(one)[0] == 2
        # It is written within a second or two, before the server dies.
        database = Database.at_url(url)
        until(lambda: bool(answers.find(database, "laplora", [c], time.monotonic)))
        database.close()
        first.popen.send_signal(signal.SIGKILL)
        first.left()
        assert told(other, **{c: "negative", "n" * 22: "negative"}) == ["recorded", "unknown"]
        third = servers.start("--job-lease-s", "1")
        with third.client() as client:
            answered(client, "e 5")
            until(lambda: labelled(client) == labelled(other))
            assert labelled(client)[0] == 3
