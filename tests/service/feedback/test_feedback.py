"""POST and GET /feedback: ids, labels, corrections, bounds, whose predictions they are, and that no prompt is kept."""

from __future__ import annotations

import asyncio
import gc
import re
import tracemalloc
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import FakePredictor, Served, changed, serve

from laplora.prompts.templates import TEMPLATES
from service.feedback.labels import FeedbackStore
from service.feedback.records import SeriesReport
from service.security.callers import Caller

pytestmark = pytest.mark.anyio
SECRET = "zebra-secret"


class Kept:
    """A store of a fake predictor's answers, on a monotonic clock that the test moves."""

    def __init__(self, labels: Sequence[str] = ("negative", "positive"), **values: Any) -> None:
        self.now = 1000.0
        self.predictor = FakePredictor(labels=labels)
        self.store = FeedbackStore(clock=lambda: self.now, **{"keep_s": 100.0, "rows": 1000, "window": 100, **values})

    def remember(self, *tokens: int, caller: str = "one") -> list[str]:
        predictions = self.predictor.predict([self.predictor.row(token) for token in tokens])
        return self.store.remember(self.predictor, "laplace", caller, predictions)  # type: ignore[arg-type]

    def give(self, ids: Sequence[str], label: str = "negative", caller: str = "one") -> list[str]:
        return list(self.store.give(caller, [(one, label) for one in ids]))

    def shown(self) -> SeriesReport:
        (report,) = self.store.reports([self.predictor])
        return report


async def ids(served: Served, *texts: str, **body: Any) -> list[str]:
    answer = (await served.predict(*texts, **body)).json()
    return [one["prediction_id"] for one in answer["predictions"]]


async def give(served: Served, *items: tuple[str, str]) -> list[str]:
    body = {"items": [{"prediction_id": one, "label": label} for one, label in items]}
    response = await served.client.post("/feedback", json=body)
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [result["prediction_id"] for result in results] == [one for one, _ in items]
    return [result["status"] for result in results]


async def series(served: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await served.client.get("/feedback")).json()["series"]
    return found


async def test_every_prediction_has_an_unguessable_id_of_its_own(served: Served) -> None:
    requests = await asyncio.gather(*(ids(served, "a 7", "a 7", "b 9") for _ in range(20)))
    found = [one for own in requests for one in own]
    assert len(set(found)) == len(found) == 60
    # 132 bits in the alphabet of URLs.
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", one) for one in found)


async def test_recorded_repeated_corrected_and_unknown_in_one_request(served: Served) -> None:
    first, second = await ids(served, "a 70000", "b 20000")
    # One label that its prediction had not refuses all.
    items = [{"prediction_id": first, "label": "negative"}, {"prediction_id": second, "label": SECRET}]
    response = await served.client.post("/feedback", json={"items": items})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["field"]) == (422, "invalid_request", "items.1.label")
    assert SECRET not in response.text
    statuses = await give(served, (first, "negative"), (second, "negative"), ("lost", "positive"))
    assert statuses == ["recorded", "recorded", "unknown"]
    statuses = await give(served, (first, "negative"), (second, "positive"), (second, "positive"))
    assert statuses == ["repeated", "corrected", "repeated"]
    (found,) = await series(served)
    text = (await served.client.get("/metrics")).text
    assert (found["predictions"], found["labelled"]) == (2, 2)
    # The largest probability of each is its label's: 0.7 for negative, and since the correction 0.8 for positive.
    assert found["figures"]["accuracy"]["value"] == 1.0
    for status, count in (("recorded", 2), ("repeated", 2), ("corrected", 1), ("unknown", 1)):
        assert f'laplora_feedback_items_total{{status="{status}"}} {count}.0' in text
    assert "laplora_feedback_kept_rows 2.0" in text


async def test_without_rows_nothing_is_kept_and_no_id_is_given(served: Served) -> None:
    served.predictor.nan = True
    assert (await served.predict("a 7")).status_code == 422
    assert len(served.state.feedback) == 0, "a request that fails leaves nothing behind"
    async with serve(feedback_rows=0) as served:
        (prediction,) = (await served.predict("a 7")).json()["predictions"]
        assert "prediction_id" not in prediction
        item = {"prediction_id": "a", "label": "negative"}
        refused = [await served.client.post("/feedback", json={"items": [item]}), await served.client.get("/feedback")]
        text = (await served.client.get("/metrics")).text
    assert [(r.status_code, r.json()["error"]["code"]) for r in refused] == [(404, "feedback_off")] * 2
    assert "laplora_feedback_rows" not in text
    assert "laplora_feedback_kept" not in text


async def test_only_its_own_caller_can_label_a_prediction(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    """Another's id is as unknown as one that never was, whatever label comes with it."""
    (own,) = await ids(served, "a 7")
    monkeypatch.setattr("service.http.routes.dependencies.caller_of", lambda request: Caller("another"))
    assert await give(served, (own, "negative"), (own, "no such label"), ("lost", "negative")) == ["unknown"] * 3
    monkeypatch.undo()
    assert await give(served, (own, "negative")) == ["recorded"]


async def test_choices_have_the_labels_of_their_own_question() -> None:
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=("A", "B", "C", "D"))
    async with serve(predictor) as served:
        inputs = [{"question": "q 7", "choices": ["x", "y"]}, {"question": "q 7", "choices": ["x", "y", "z"]}]
        answer = (await served.client.post("/predict", json={"inputs": inputs})).json()
        two, three = (one["prediction_id"] for one in answer["predictions"])
        items = {"items": [{"prediction_id": two, "label": "C"}]}
        assert (await served.client.post("/feedback", json=items)).status_code == 422
        assert await give(served, (two, "B"), (three, "C")) == ["recorded", "recorded"]
        found = {one["predictive"]: one for one in await series(served)}
    assert found["laplace"]["labelled"] == 2


def test_the_oldest_go_first() -> None:
    kept = Kept(rows=5)
    found = [one for token in range(8) for one in kept.remember(10 + token)]
    assert len(kept.store) == 5
    assert kept.give(found) == ["unknown"] * 3 + ["recorded"] * 5
    # What was labelled counts in its window even when newer predictions have taken the place of its id.
    kept.remember(*range(10, 15))
    assert kept.give(found[-1:], "positive") == ["unknown"]
    assert kept.shown().labelled == 5


def test_age_goes_by_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that jumps by years, either way, changes nothing."""
    kept = Kept()
    early = kept.remember(7)
    for wall in (0.0, 1e12, -1e9):
        monkeypatch.setattr("time.time", lambda wall=wall: wall)
        assert kept.give(early)[0] in ("recorded", "repeated")
    monkeypatch.undo()
    kept.now += 60
    late = kept.remember(8)
    kept.now += 40
    assert len(kept.store) == 2
    kept.now += 1
    assert len(kept.store) == 1
    assert kept.give([*early, *late]) == ["unknown", "recorded"]
    assert kept.shown().labelled == 1  # the early one has left its window too
    kept.now += 100
    assert kept.store.reports([kept.predictor]) == []
    assert len(kept.store) == 0


@pytest.mark.parametrize(("classes", "most"), [(2, 450), (10, 600)])
def test_a_kept_prediction_takes_few_bytes(classes: int, most: int) -> None:
    kept = Kept([chr(65 + i) for i in range(classes)], rows=100_000)
    kept.remember(*range(10, 310))  # fills the series' own windows
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for start in range(0, 3000, 100):
            kept.remember(*range(10 + start, 110 + start))
        kept.predictor.batches.clear()
        kept.store.unsaved.clear()  # as once the database has them
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < (after - before) / 3000 < most


def reachable(start: object) -> Iterator[object]:
    """Yield every object that can be reached from one, code and modules aside."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, types.FunctionType, types.MethodType)):
            continue
        seen.add(id(one))
        yield one
        waiting.extend(gc.get_referents(one))


async def test_nothing_kept_holds_a_prompt_or_a_clients_id(served: Served) -> None:
    inputs = [{"id": f"{SECRET}-id", "text": f"{SECRET} 7"}]
    answer = (await served.client.post("/predict", json={"inputs": inputs})).json()
    await give(served, (answer["predictions"][0]["prediction_id"], "negative"))
    await served.client.get("/feedback")
    kept = [served.state.feedback._predictions, served.state.feedback._series]
    texts = [one for one in reachable(kept) if isinstance(one, (str, bytes))]
    # The walk does reach what is kept.
    assert answer["predictions"][0]["prediction_id"] in texts
    assert "laplace" in texts
    assert not [one for one in texts if (SECRET if isinstance(one, str) else SECRET.encode()) in one]


def test_threads_at_once_lose_and_double_nothing() -> None:
    kept = Kept(window=2000, rows=10_000)

    def work(caller: str) -> list[str]:
        statuses: list[str] = []
        for _ in range(20):
            ids = kept.remember(*[10_000] * 5, caller=caller)
            statuses += kept.give(ids, caller=caller) + kept.give(ids, "positive", caller=caller)
            kept.shown()
        return statuses

    with ThreadPoolExecutor(8) as pool:
        found = [status for statuses in pool.map(work, [f"caller {i}" for i in range(8)]) for status in statuses]
    assert sorted(found) == ["corrected"] * 800 + ["recorded"] * 800
    shown = kept.shown()
    assert (shown.predictions, shown.labelled) == (800, 800)
    assert shown.figures is not None
    assert shown.figures.accuracy.value == 1.0  # of every one, the correction counts


async def test_figures_are_of_loaded_artifacts_only() -> None:
    """Of what was unloaded every series is gone, but labels are still taken; loaded again, it has them."""
    predictor, other = FakePredictor("fake"), FakePredictor("other")
    async with serve(predictor, other) as served:
        served.state.artifacts.path_of = lambda name: predictor.artifact.path.with_name(name)
        (old,) = await ids(served, "a 7")
        assert (await changed(served.client, "other/activate")).status_code == 200
        await ids(served, "a 7")
        assert [one["artifact"] for one in await series(served)] == ["fake", "other"]
        assert 'artifact="fake"' in (await served.client.get("/metrics")).text
        assert (await served.client.post("/artifacts/fake/unload")).status_code == 200
        assert await give(served, (old, "negative")) == ["recorded"]
        assert [one["artifact"] for one in await series(served)] == ["other"]
        text = (await served.client.get("/metrics")).text
        assert 'laplora_feedback_rows{artifact="other",predictive="laplace"} 0.0' in text
        assert 'artifact="fake"' not in text
        assert (await changed(served.client, "fake/load")).status_code == 200
        back, _ = await series(served)
        assert (back["artifact"], back["labelled"]) == ("fake", 1)
        await ids(served, "a 7", artifact="fake")
        decisions = 'laplora_decisions_total{artifact="fake",decision="accept",predictive="laplace"} 1.0'
        assert decisions in (await served.client.get("/metrics")).text
