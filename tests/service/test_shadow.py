"""A candidate in the shadow: what it answers, what it never touches, and when it takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, artifacts_in, changed, code, library, serve, settings, started

from service.app import _activate, create_app
from service.feedback.labels import BESIDE
from service.shadow import candidate

pytestmark = pytest.mark.anyio


class Two:
    """A server on which ``first`` is active and ``second`` is loaded; ``second`` answers otherwise where ``turned``."""

    def __init__(self, served: Served, first: FakePredictor, second: FakePredictor) -> None:
        self.served, self.first, self.second = served, first, second

    async def begin(self, name: str = "second", **body: Any) -> httpx.Response:
        return await self.served.client.post(f"/artifacts/{name}/shadow", json={"share": 1.0} | body)

    async def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.served.client.get("/shadow")).json()["shadow"]
        return found

    async def ask(self, *texts: str, label: str | None = None, **body: Any) -> list[str]:
        """Ask, wait for the shadow's answers, and label all answers."""
        before = self.rows
        answer = (await self.served.predict(*texts, **body)).json()
        await self.served.until(lambda: self.rows >= before + len(texts))
        ids = [one["prediction_id"] for one in answer["predictions"]]
        if label is not None:
            items = [{"prediction_id": one, "label": label} for one in ids]
            assert (await self.served.client.post("/feedback", json={"items": items})).status_code == 200
        return ids

    @property
    def rows(self) -> int:
        shadow = self.served.state.candidate
        return int(shadow._seen.rows + shadow._seen.missed.total())


class Surer(FakePredictor):
    """Says ``negative`` for certain, whatever comes."""

    def _one(self, row: Any, predictive: str, posterior: bool, covariance: bool) -> Any:
        answer = super()._one(row, predictive, posterior, covariance)
        answer.arrays.probs[:] = answer.arrays.map_probs[:] = [0.99, 0.01]
        object.__setattr__(answer, "label_index", 0)
        return answer


@asynccontextmanager
async def two_in(root: Path, **values: Any) -> AsyncIterator[Two]:
    (first,) = artifacts_in(root, "first")
    artifacts_in(root, "second")
    second = Surer("second", path=root / "second")
    values = {"artifact": "first", "artifacts_root": root, "also_load": "second"} | values
    async with serve(first, second, **values) as served:
        first.batches.clear()
        second.batches.clear()
        yield Two(served, first, second)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with two_in(tmp_path) as two:
        yield two


@pytest.fixture(autouse=True)
def nothing_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "_REUSED", 0)


def different(count: int) -> list[str]:
    """Return texts that the active artifact answers by different probabilities, a right one of 0.5 to 0.6."""
    return [f"a {50_000 + 100 * i}" for i in range(count)]


async def test_it_answers_beside_the_active_one_and_a_label_is_for_both(two: Two) -> None:
    assert (await two.served.client.get("/shadow")).json() == {"shadow": None}
    assert (await two.begin()).status_code == 200
    await two.ask("a 90000", "b 70000", label="negative")
    (unlabelled,) = await two.ask("c 60000")
    shown = await two.shown()
    assert (shown["rows"], shown["missed"], shown["agreement"], shown["labelled"]) == (3, 0, 0.0, 2)
    assert shown["pairs"] == [{"active": "positive", "shadow": "negative", "rows": 3}]
    assert shown["accepted_share"] == {"active": 1.0, "shadow": 1.0, "both": 1.0}
    assert [shown["figures"][name]["accuracy"] for name in ("active", "shadow")] == [0.0, 1.0]
    assert shown["figures"]["active"]["nll"] == pytest.approx((0.10536 + 0.35667) / 2, abs=1e-4)
    # A label that is corrected is corrected for both.
    item = {"items": [{"prediction_id": unlabelled, "label": "negative"}]}
    for label, accuracy in (("negative", 1.0), ("positive", 2 / 3)):
        item["items"][0]["label"] = label
        await two.served.client.post("/feedback", json=item)
        assert (await two.shown())["figures"]["shadow"]["accuracy"] == pytest.approx(accuracy)
    # Nobody labels a shadow's answer by itself, and who asked got nothing of it.
    hidden = {"items": [{"prediction_id": BESIDE + unlabelled, "label": "negative"}]}
    answer = (await two.served.client.post("/feedback", json=hidden)).json()
    assert answer["results"][0]["status"] == "unknown"
    text = (await two.served.client.get("/metrics")).text
    by = 'active_accepts="true",artifact="second",same_label="false",shadow_accepts="true"'
    assert f"laplora_shadow_rows_total{{{by}}} 3.0" in text
    assert 'laplora_feedback_accuracy{artifact="second",predictive="laplace"} 0.66' in text
    assert (await two.served.client.delete("/artifacts/first/shadow")).json() == {"shadow": None}
    last = await two.served.client.delete("/artifacts/second/shadow")
    assert last.json()["shadow"]["labelled"] == 3
    assert (await two.served.client.get("/shadow")).json() == {"shadow": None}
    assert "laplora_shadow_rows_total{" not in (await two.served.client.get("/metrics")).text


async def test_only_what_the_active_one_recommends_is_compared_and_a_share_of_it(two: Two) -> None:
    await two.begin(share=0.5)
    await two.served.predict("a 1", artifact="second")
    await two.served.predict("a 1", options={"predictive": "temperature"})
    two.second.batches.clear()
    for _ in range(20):
        await two.served.predict(*["a 60000"] * 10)
    await two.served.until(lambda: two.served.state.candidate._rows == 0 and two.served.state.backend.requests == 0)
    assert 60 < two.rows < 140
    assert max(len(rows) for _, rows in two.second.batches) <= candidate._AT_ONCE


async def test_requests_go_first_and_what_has_no_room_is_missed(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "_MOST_ROWS", 3)
    await two.begin()
    async with two.served.occupied():
        running = [asyncio.create_task(two.served.predict("b 2")) for _ in range(2)]
        await two.served.until(lambda: two.served.queued_plans == 3)
        assert not two.second.batches
    await asyncio.gather(*running)
    await two.served.predict("a 1", "a 2", "a 3", "a 4")
    await two.served.until(lambda: two.rows >= 7)
    shown = await two.shown()
    assert shown["missed"] == 4
    two.second.poison[70000] = ValueError("nothing for it")
    assert (await two.served.predict("a 70000")).status_code == 200
    await two.served.until(lambda: two.rows >= 8)
    assert (await two.shown())["missed"] == 5


async def test_it_is_activated_once_it_is_better_for_certain(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "RULE_LOOK_S", 0.01)
    began = (await two.begin(activate_if_better=["accuracy"])).json()["shadow"]
    assert (began["verdict"], began["labelled"]) == ("waiting", 0)
    for text in different(80):
        if two.served.state.artifacts.active is two.first:
            await two.ask(text, label="negative")
    await two.served.until(lambda: two.served.state.artifacts.active is two.second)
    assert (await two.served.client.get("/shadow")).json() == {"shadow": None}
    (change,) = (await two.served.client.get("/changes")).json()["changes"]
    assert (change["kind"], change["artifact"], change["status"]) == ("activate", "second", "succeeded")
    await two.served.until(lambda: two.served.state.candidate.terms is None)
    # Whoever goes back stays there.
    await changed(two.served.client, "first/activate")
    await two.served.predict(*["a 60000"] * 10)
    assert (await two.served.client.get("/shadow")).json() == {"shadow": None}


async def test_it_is_not_activated_where_it_is_worse_or_errs_more_often_than_stated(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "RULE_LOOK_S", 0.01)
    await two.begin(activate_if_better=["accepted_share", "nll"])
    monkeypatch.setattr(two.first, "decided", lambda predictions, wanted: [p.reviewed("a") for p in predictions])
    for text in different(80):
        await two.ask(text, label="positive")
    shown = await two.shown()
    (share,) = (one for one in shown["differences"] if one["figure"] == "accepted_share")
    assert share["value"] == 1.0
    assert share["low"] > 0.5
    assert shown["verdict"] == "waiting"
    assert shown["reason"].startswith("its accepted answers err more often than stated")
    assert two.served.state.artifacts.active is two.first


async def test_its_answers_push_out_none_that_a_client_may_label(tmp_path: Path) -> None:
    async with two_in(tmp_path, feedback_rows=6) as two:
        await two.begin()
        ids = await two.ask(*different(6))
        items = [{"prediction_id": one, "label": "negative"} for one in ids]
        results = (await two.served.client.post("/feedback", json={"items": items})).json()["results"]
        assert {one["status"] for one in results} == {"recorded"}
        assert (await two.shown())["labelled"] == 6


async def test_another_version_than_was_compared_is_not_activated(
    two: Two, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await two.begin(activate_if_better=["accuracy"])
    for text in different(80):
        await two.ask(text, label="negative")
    shadow = two.served.state.candidate
    active, model, done = await shadow.compare()
    assert done.verdict == "better"
    other = Surer("second", path=model.artifact.path)  # as if the folder had been replaced and loaded since
    monkeypatch.setattr(shadow, "compare", lambda: asyncio.sleep(0, (active, other, done)))
    monkeypatch.setattr(candidate, "RULE_LOOK_S", 0.01)
    shadow.stop()
    shadow.start(partial(_activate, two.served.state))
    await two.served.until(lambda: "could not be activated" in caplog.text)
    assert two.served.state.artifacts.active is two.first


async def test_refusals_say_why(two: Two, tmp_path: Path) -> None:
    assert code(await two.begin("nobody")) == (404, "artifact_not_found")
    assert code(await two.begin("first")) == (422, "invalid_request")
    assert code(await two.begin(activate_if_better=["accepted_share"])) == (422, "invalid_request")
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"activate_if_better": ["ece"]}, {"confidence": 1.0}):
        assert code(await two.begin(**wrong)) == (422, "invalid_request")
    await changed(two.served.client, "second/unload")
    assert code(await two.begin()) == (404, "artifact_not_loaded")
    assert code(await two.served.client.delete("/artifacts/nobody/shadow")) == (404, "artifact_not_found")
    two.second.artifact.manifest.labels = ("negative", "neutral")
    await changed(two.served.client, "second/load")
    refused = await two.begin()
    assert code(refused) == (409, "artifact_incompatible")
    assert "labels" in refused.json()["error"]["message"]
    (tmp_path / "off").mkdir()
    async with two_in(tmp_path / "off", feedback_rows=0) as off:
        assert code(await off.begin(activate_if_better=["nll"])) == (422, "invalid_request")
        assert (await off.begin()).status_code == 200
        await off.served.predict("a 1")
        await off.served.until(lambda: off.rows == 1)


async def test_it_outlives_its_server_with_the_labels(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    (first,) = artifacts_in(root, "first")
    artifacts_in(root, "second")
    second = Surer("second", path=root / "second")

    @asynccontextmanager
    async def server() -> AsyncIterator[Two]:
        values = {"artifact": "first", "also_load": "second", "artifacts_root": root, "jobs_dir": tmp_path / "jobs"}
        app = create_app(settings(**values), library=library(first, second))
        async with started(app) as client:
            yield Two(Served(app, client, first), first, second)

    async with server() as two:
        await two.begin(share=1.0)
        await two.ask("a 90000", label="negative")
        second.hold()  # and a label may come before the shadow's answer
        (answer,) = (await two.served.predict("b 80000")).json()["predictions"]
        told = {"items": [{"prediction_id": answer["prediction_id"], "label": "negative"}]}
        await two.served.client.post("/feedback", json=told)
        second.released.set()
        await two.served.until(lambda: two.rows == 2)
        before = await two.shown()
        assert before["labelled"] == 2
    async with server() as two:
        async with asyncio.timeout(60):
            while (await two.shown())["labelled"] < 2:
                await asyncio.sleep(0.05)
        after = await two.shown()
        assert (after["since"], after["labelled"], after["figures"]) == (before["since"], 2, before["figures"])
        assert after["rows"] == 0, "of this server alone"
        await two.served.client.delete("/artifacts/second/shadow")
    async with server() as two:
        assert (await two.served.client.get("/shadow")).json() == {"shadow": None}
