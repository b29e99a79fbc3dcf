"""Evaluations, jobs and feedback where several labels may be right, over a real model, against numbers made by hand."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from head_artifacts import pack_several
from scipy import special
from serving import Served, settings, started

from laplora.client.answers import Evaluated, FeedbackResult
from laplora.client.requests import feedback_items
from service.app import create_app

LABELS = ["negative", "positive"]
OPTIONS = {"resamples": 20, "bins": 5}
JSON_LINES = {"content-type": "application/jsonl"}
Client = httpx.AsyncClient
pytestmark = pytest.mark.anyio
#: A label by itself, one that there is not, one twice, and what is none.
REFUSED: list[tuple[Any, str]] = [
    ("negative", "must be a list of labels, which may be empty"),
    (["news"], "each label must be one of"),
    (["negative", "negative"], "each once"),
    ([1], "valid string, or a list of them"),
    (["n" * 300], "at most 256 characters"),
]


def labelled(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Return random texts with none to both of the labels."""
    draw = random.Random(seed)
    return [
        {
            "text": " ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 9))),
            "label": draw.sample(LABELS, draw.randint(0, 2)),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_several(tmp_path_factory.mktemp("several"))


@pytest.fixture
async def client(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A client of a server of the artifact, each row of which runs alone: its answers are the same to the last bit."""
    monkeypatch.setenv("LAPLORA_CACHE", str(artifact.parent))
    own = settings(artifact="several", artifacts_root=artifact.parent, batch_tokens=1)
    async with started(create_app(own)) as client:
        yield client


async def said(client: Client, path: str, body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def answers_to(client: Client, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    inputs = [{"text": row["text"]} for row in rows]
    body = {"inputs": inputs, "options": {"predictive": "laplace", **options}}
    return list((await said(client, "/predict", body))["predictions"])


def table(answers: list[dict[str, Any]], of: str = "probs") -> np.ndarray[Any, Any]:
    return np.array([[answer[of][label] for label in LABELS] for answer in answers])


def told(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.array([[label in row["label"] for label in LABELS] for row in rows])


def losses(probs: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return -np.where(right, np.log(probs), np.log1p(-probs))


async def test_metrics_are_of_every_label_and_by_label(client: Client) -> None:
    rows = labelled()
    answers = await answers_to(client, rows)
    evaluated = await said(client, "/evaluate", {"inputs": rows, "options": OPTIONS})
    right, probs = told(rows), table(answers)
    assert [one["labels"] for one in answers] == [[n for n, p in one["probs"].items() if p > 0.5] for one in answers]
    assert 0 < right.mean() < 1
    assert 0 < (probs > 0.5).mean() < 1
    assert evaluated["rows"] == len(rows)
    found = evaluated["methods"]["laplace"]
    hits = (probs > 0.5) == right
    assert found["accuracy"] == pytest.approx(hits.mean())
    assert found["exact_match"] == pytest.approx(hits.all(1).mean())
    assert found["nll"] == pytest.approx(losses(probs, right).mean(), rel=1e-5)
    assert found["brier"] == pytest.approx(2 * ((probs - right) ** 2).mean(), rel=1e-5)
    at_map = evaluated["methods"]["map"]
    assert at_map["nll"] == pytest.approx(losses(table(answers, "map_probs"), right).mean(), rel=1e-5)
    assert sum(one["count"] for one in found["reliability"]) == 2 * len(rows)
    low, high = found["intervals"]["accuracy"]
    assert low <= found["accuracy"] <= high
    # Mistakes are ranked by the entropy of each label, as the review score is.
    order = np.argsort(-(special.entr(probs) + special.entr(1 - probs)).ravel(), kind="stable")
    wrong = ~hits.ravel()[order]
    ranked = [(~wrong[i + 1 :]).sum() for i in np.flatnonzero(wrong)]
    assert found["auroc_error"] == pytest.approx(sum(ranked) / (wrong.sum() * (~wrong).sum()), abs=1e-3)
    for k, label in enumerate(LABELS):
        one, present = found["labels"][label], probs[:, k] > 0.5
        assert one["present"] == right[:, k].sum()
        assert one["accuracy"] == pytest.approx(hits[:, k].mean())
        assert one["recall"] == pytest.approx((present & right[:, k]).sum() / right[:, k].sum())
        expected = (present & right[:, k]).sum() / present.sum() if present.any() else None
        assert one["precision"] == (None if expected is None else pytest.approx(expected))
        assert one["nll"] == pytest.approx(losses(probs, right)[:, k].mean(), rel=1e-5)
    assert Evaluated.model_validate(evaluated).methods["laplace"].labels is not None


async def test_a_job_says_what_evaluate_says(client: Client) -> None:
    rows = labelled()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    answer = await client.post("/evaluate/jobs", content=lines, headers=JSON_LINES, params=OPTIONS)
    assert answer.status_code == 202, answer.text
    while (job := (await client.get(answer.headers["location"])).json())["status"] != "done":
        assert job["status"] in ("queued", "running"), job
        await asyncio.sleep(0.02)
    direct = await said(client, "/evaluate", {"inputs": rows, "options": OPTIONS})
    del direct["timing_ms"], direct["accepted"]  # a job keeps no decisions
    assert job["result"] == direct
    assert direct["methods"]["laplace"]["labels"].keys() == set(LABELS)
    for name, found in direct["methods"].items():
        assert job["partial"][name] == pytest.approx({key: found[key] for key in ("accuracy", "nll", "ece")}, rel=1e-6)


async def test_labels_that_are_no_list_are_refused_by_name(client: Client) -> None:
    for label, message in REFUSED:
        row = {"text": "a b", "label": label}
        for answer, field in (
            (await client.post("/evaluate", json={"inputs": [row]}), "inputs.0.label"),
            (await client.post("/evaluate/jobs", content=json.dumps(row), headers=JSON_LINES), "lines.1.label"),
        ):
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
            assert message in answer.json()["error"]["message"]


async def test_a_list_is_refused_where_one_label_is_right(served: Served) -> None:
    (first,) = (await served.predict("row 7")).json()["predictions"]
    row = {"text": "row 7", "label": ["negative"]}
    item = {"prediction_id": first["prediction_id"], "label": ["negative"]}
    for path, body in (("/evaluate", {"inputs": [row]}), ("/feedback", {"items": [item]})):
        answer = await served.client.post(path, json=body)
        assert (answer.status_code, "not a list" in answer.text) == (422, True)


async def test_feedback_counts_every_label(client: Client) -> None:
    rows = labelled(60)  # fewer than 30 have no limit by their spread, fewer than 50 no drift
    answers = await answers_to(client, rows, target_risk=0.45)
    ids = [answer["prediction_id"] for answer in answers]

    async def give(labels: dict[str, list[str]]) -> list[str]:
        given = await said(client, "/feedback", {"items": feedback_items(labels)})
        return [FeedbackResult.model_validate(one).status for one in given["results"]]

    await give({ids[0]: []})
    statuses = await give(dict(zip(ids, [row["label"] for row in rows], strict=True)))
    assert statuses == ["corrected" if rows[0]["label"] else "repeated", *["recorded"] * (len(rows) - 1)]
    assert await give({ids[1]: rows[1]["label"][::-1]}) == ["repeated"]
    for label, _ in REFUSED[:2]:
        refused = await client.post("/feedback", json={"items": [{"prediction_id": ids[0], "label": label}]})
        assert refused.status_code == 422
    (series,) = (await client.get("/feedback")).json()["series"]
    gauges = (await client.get("/metrics")).text
    right, probs, at_map = told(rows), table(answers), table(answers, "map_probs")
    figures, hits = series["figures"], (probs > 0.5) == right
    assert (series["predictions"], series["labelled"]) == (len(rows), len(rows))
    assert [(drift["signal"], drift["reference"]) for drift in series["drift"]] == [("score", "calibration")]
    assert figures["accuracy"]["value"] == pytest.approx(hits.mean())
    assert figures["nll"]["value"] == pytest.approx(losses(probs, right).mean(), rel=1e-6)
    gain = (losses(at_map, right) - losses(probs, right)).mean(1)
    assert figures["map_gain"]["value"] == pytest.approx(gain.mean(), abs=1e-9)
    assert figures["map_gain"]["limit"] == pytest.approx(-3.0902 * gain.std(ddof=1) / len(rows) ** 0.5, rel=1e-6)
    held = np.array([[label in answer["prediction_set"] for label in LABELS] for answer in answers])
    assert figures["coverage"]["value"] == pytest.approx(held[right].mean())
    assert (figures["coverage"]["limit"], figures["ece"]["limit"]) == (None, None)
    accepted = np.array([answer["decision"] == "accept" for answer in answers])
    assert figures["accepted"] == accepted.sum()
    assert 0 < accepted.sum() < len(rows)
    assert figures["accepted_risk"]["value"] == pytest.approx((~hits)[accepted].mean())
    assert figures["accepted_risk"]["reference"] == pytest.approx(0.45)
    for k, label in enumerate(LABELS):
        assert series["labels"][label]["present"] == right[:, k].sum()
        assert series["labels"][label]["accuracy"] == pytest.approx(hits[:, k].mean())
    for name, flag in series["flags"].items():
        raised = np.array([name in answer["flags"] for answer in answers])
        assert flag["rows"] == raised.sum()
        assert flag["error_rate"] == pytest.approx((~hits.all(1))[raised].mean())
    assert series["flags"]
    for name, value in (("rows", len(rows)), ("nll", figures["nll"]["value"])):
        assert f'laplora_feedback_{name}{{artifact="several",predictive="laplace"}} {float(value)}' in gauges
