"""Heads over HTTP, with and without an adapter: the numbers that memory gives, refusals, labels that come later."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from head_artifacts import letter_rows, letters
from serving import changed, settings, started
from tiny_models import add_lora, tiny_base
from tiny_sentence_encoder import sentence_encoder_folder
from transformers import AutoModelForCausalLM

import laplora
from laplora.metrics.noise import share_interval
from service.app import create_app
from service.errors import InvalidRequestError
from service.scoring.plan import choose_ask

LABELS = {"no": " w1", "yes": " w2"}
Rows = list[dict[str, Any]]
pytestmark = pytest.mark.anyio


def fitted(folder: Path, *, adapted: bool, name: str = "heads", count: int = 80) -> laplora.CalibratedPosterior:
    """Return heads on a tiny decoder and a tiny sentence encoder, beside an adapter or alone."""
    tokenizer = letters("[CLS] $A")
    tiny_base("llama").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    encoder = sentence_encoder_folder(folder / f"encoder-{name}", letters("[CLS] $A [SEP]"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base")
    if adapted:
        model = add_lora(model, ["q_proj", "v_proj"], dtype=None)
    classifier = laplora.Classifier(model, tokenizer, "{text} z", LABELS, max_tokens=16)
    experts = {"names": ["frozen", "encoder"], "encoder": str(encoder)}
    laplace, calibration = {"joint_rank": 8, "prior": "evidence"}, {"ordered": adapted}
    question = {"type": "noul", "yes_label": "yes", "state": {"text": None}}
    wanted = {"experts": experts, "laplace": laplace, "calibration": calibration, "question": question}
    own = laplora.FitSettings.model_validate(wanted)
    rows = letter_rows(count, shortest=3)
    given = (rows[:40], rows[40:]) if adapted else (rows,)
    found = laplora.fit(classifier, *given, settings=own, progress=False)
    found.save(folder / name, base=str(folder / "base"))
    return found


@asynccontextmanager
async def served(folder: Path, **values: Any) -> AsyncIterator[httpx.AsyncClient]:
    own = settings(artifact="heads", artifacts_root=folder, conditioning=True, **values)
    async with started(create_app(own)) as client:
        yield client


async def answers(client: httpx.AsyncClient, rows: Rows, **options: Any) -> list[dict[str, Any]]:
    body = {"inputs": [{"text": row["text"]} for row in rows], "options": {"detail": "full", **options}}
    answer = await client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["predictions"])


def check(over_http: list[dict[str, Any]], memory: list[laplora.Prediction]) -> None:
    """Compare answers with those of memory, number by number."""
    for got, want in zip(over_http, memory, strict=True):
        assert (got["label"], got["answered_by"]) == (want.label, want.predictive)
        assert got["probs"] == pytest.approx(want.probs, abs=2e-4)
        assert got["map_probs"] == pytest.approx(want.map_probs, abs=2e-4)
        assert got["probs_std"] == (None if want.probs_std is None else pytest.approx(want.probs_std, abs=2e-3))
        assert got["label_mass"] == pytest.approx(want.label_mass, abs=2e-4)
        assert set(got["calibrated_probs"]) == set(want.calibrated_probs)


async def check_suggested(client: httpx.AsyncClient, posterior: laplora.CalibratedPosterior, texts: Rows) -> None:
    """Compare what is suggested with what memory suggests, with a posterior and without."""
    response = await client.post("/suggest", json={"inputs": texts, "options": {"count": 3}})
    assert response.status_code == 200, response.text
    got, want = response.json()["suggested"], posterior.suggest(texts, 3).reasons()
    assert [one["row"] for one in got] == [one["row"] for one in want]
    assert [one["gain"] for one in got] == pytest.approx([one["gain"] for one in want], rel=1e-2, abs=1e-5)


async def check_accepted(client: httpx.AsyncClient, rows: Rows) -> None:
    """Compare what /evaluate counts as accepted with the decisions of /predict, at a risk that splits the rows."""
    default = await answers(client, rows)
    decided = [(one["label"], one["decision"]) for one in await answers(client, rows, target_risk=0.3)]
    wanted = [row["label"] if isinstance(row["label"], str) else list(LABELS)[row["label"]] for row in rows]
    inputs = [{"text": row["text"], "label": label} for row, label in zip(rows, wanted, strict=True)]
    options = {"resamples": 10, "target_risk": 0.3}
    found = (await client.post("/evaluate", json={"inputs": inputs, "options": options})).json()["accepted"]
    taken = [label == want for (label, decision), want in zip(decided, wanted, strict=True) if decision == "accept"]
    assert 0 < len(taken) < len(rows)
    assert (found["rows"], found["wrong"], found["share"]) == (len(taken), taken.count(False), len(taken) / len(rows))
    assert found["error_rate"] == pytest.approx(taken.count(False) / len(taken))
    assert found["interval"] == pytest.approx(share_interval(taken.count(False), len(taken)))
    assert (found["predictive"], found["target_risk"]) == (default[0]["answered_by"], 0.3)
    costs = {"review": 1.0, "wrong": {"yes": 30.0, "*": 1.5}}
    of_costs = await answers(client, rows, costs=costs)
    expected = [{"yes": 1.5 * one["probs"]["no"], "no": 30 * one["probs"]["yes"]} for one in of_costs]
    for one, each in zip(of_costs, expected, strict=True):
        assert one["label"] == min(each, key=each.__getitem__)
        assert one["expected_cost"] == pytest.approx(each[one["label"]])
        assert ("low_confidence" in one["flags"]) == (one["expected_cost"] > 1)
        assert one["decision"] == "review" or one["decision_reason"].startswith("it is expected to cost")
    assert {one["label"] for one in of_costs} != {one["label"] for one in default}
    options = {"resamples": 10, "costs": costs}
    found = (await client.post("/evaluate", json={"inputs": inputs, "options": options})).json()["accepted"]
    pairs = zip(of_costs, wanted, strict=True)
    paid = [1 if one["decision"] == "review" else (one["label"] != y) * (30 if y == "yes" else 1.5) for one, y in pairs]
    assert (found["cost"]["mean"], found["target_risk"]) == (pytest.approx(sum(paid) / len(paid)), None)
    for wrong in ({"costs": costs, "target_risk": 0.1}, {"costs": {"review": 1, "wrong": {"maybe": 2}}}):
        refused = await client.post("/predict", json={"inputs": [{"text": "a"}], "options": wrong})
        assert (refused.status_code, "costs" in refused.text) == (422, True)


async def check_order(
    client: httpx.AsyncClient, posterior: laplora.CalibratedPosterior, rows: Rows, *, ordered: bool
) -> None:
    """An artifact whose labels have an order says the expected one; of two labels it is the second's probability."""
    for name in posterior.predictives:
        full = await answers(client, rows, predictive=name)
        short = await answers(client, rows, predictive=name, detail="short")
        if not ordered:
            assert not any("expected_label" in one and one["expected_label"] is not None for one in (*full, *short))
            continue
        assert not any("expected_label" in one for one in short)
        for one in full:
            assert one["expected_label"] == pytest.approx(one["probs"]["yes"])
            if name in ("map", "temperature"):
                assert one["expected_label_std"] is None
            else:
                # The pool's other spread is to first order.
                tolerance = 1 if name == "pooled" else 0.05
                assert one["expected_label_std"] == pytest.approx(one["probs_std"]["yes"], rel=tolerance, abs=0.01)
    body = {"inputs": rows, "options": {"resamples": 10}}
    for metrics in (await client.post("/evaluate", json=body)).json()["methods"].values():
        assert metrics["mae"] == (pytest.approx(1 - metrics["accuracy"]) if ordered else None)
        assert metrics["rps"] == (pytest.approx(metrics["brier"] / 2) if ordered else None)


async def check_soft(client: httpx.AsyncClient, posterior: laplora.CalibratedPosterior, rows: Rows) -> None:
    """Labels that are probabilities are measured as in memory; a job refuses them."""
    other = {"yes": "no", "no": "yes"}
    soft = [{"text": row["text"], "label": {row["label"]: 0.75, other[row["label"]]: 0.25}} for row in rows[1:]]
    inputs = [rows[0], *soft]
    response = await client.post("/evaluate", json={"inputs": inputs, "options": {"resamples": 10}})
    assert response.status_code == 200, response.text
    found, expected = response.json()["methods"], posterior.evaluate(inputs)
    for name in posterior.predictives:
        got = [found[name][one] for one in ("nll", "kl", "brier", "accuracy")]
        assert got == pytest.approx(
            [getattr(expected[name], one) for one in ("nll", "kl", "brier", "accuracy")], abs=2e-3
        )
    hard = await client.post("/evaluate", json={"inputs": rows, "options": {"resamples": 10}})
    assert {one["kl"] for one in hard.json()["methods"].values()} == {None}
    for label, status in (({"yes": 0.7, "maybe": 0.3}, 422), ({"yes": 0.7}, 422), ({}, 422), ({"yes": "much"}, 422)):
        refused = await client.post("/evaluate", json={"inputs": [rows[0], {"text": "a", "label": label}]})
        assert (refused.status_code, refused.json()["error"]["field"]) == (status, "inputs.1.label"), refused.text
    file = "".join(json.dumps(one) + "\n" for one in inputs)
    job = await client.post("/evaluate/jobs", content=file, headers={"content-type": "application/x-ndjson"})
    assert (job.status_code, job.json()["error"]["field"]) == (422, "lines.2.label"), job.text


@pytest.mark.parametrize("adapted", [False, True])
async def test_what_is_served_is_what_memory_answers(
    adapted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    posterior, rows = fitted(tmp_path, adapted=adapted), letter_rows(6, seed=9, shortest=3)
    texts = [{"text": row["text"]} for row in rows]
    async with served(tmp_path) as client:
        (listed,) = (await client.get("/artifacts")).json()["artifacts"]
        assert listed["predictives"] == list(posterior.predictives)
        assert {"map", "pooled"} <= set(posterior.predictives)
        assert listed["question"]["labels"] == ["no", "yes"]
        asked = {"state": texts[0]["text"], "questions": {"q": {"type": "noul"}}}
        noul = (await client.post("/v1/systemone", json=asked)).json()["answers"]["q"]["noul"]
        assert noul == pytest.approx(posterior.predict(texts[:1])[0].probs["yes"], abs=2e-4)
        for name in posterior.predictives:
            check(await answers(client, rows, predictive=name), posterior.predict(texts, name))
        default = await answers(client, rows)
        assert {one["answered_by"] for one in default} == {posterior.recommended}
        refused = await client.post(
            "/predict", json={"inputs": texts, "options": {"predictive": "laplace", "covariance": True}}
        )
        assert refused.status_code == (200 if adapted else 422)
        if not adapted:
            assert "it has no adapter" in refused.json()["error"]["message"]
            assert {one["label_mass"] for one in default} == {None}
        await check_order(client, posterior, rows, ordered=adapted)
        await check_suggested(client, posterior, texts)
        await check_accepted(client, letter_rows(40, seed=9, shortest=3))
        await check_soft(client, posterior, letter_rows(12, seed=9, shortest=3))
        # Labels that come later move every head as they do in memory, and can be taken back.
        more = [{**row, "text": f"k {row['text']}"} for row in letter_rows(24, seed=5, shortest=3)]
        more[0]["label"] = {"yes": 0.6, "no": 0.4}
        before = await answers(client, rows, predictive="pooled")
        response = await changed(client, "heads/condition", json={"rows": more, "force": True})
        assert response.status_code == 200, response.text
        learned = posterior.condition(more, force=True) if adapted else posterior.condition(more)
        for name in ("frozen", "encoder", "pooled"):
            if name in posterior.predictives:
                check(await answers(client, rows, predictive=name), learned.predict(texts, name))
        assert (await changed(client, "heads/condition/undo", json={})).status_code == 200
        again = await answers(client, rows, predictive="pooled")
        assert [one["probs"] for one in again] == [one["probs"] for one in before]


def test_heads_on_a_base_without_an_answer_of_its_own_say_so() -> None:
    model: Any = SimpleNamespace(predictives=("frozen",), recommended="frozen")
    with pytest.raises(
        InvalidRequestError, match=r"it has \['frozen'\]. map is the model's own answer: nothing is fine"
    ):
        choose_ask(model, predictive="map", variance=False, covariance=False)


async def test_a_shadow_answers_as_it_does_when_it_is_asked_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    for name, count in (("heads", 24), ("newer", 80)):
        fitted(tmp_path, adapted=False, name=name, count=count)
    rows, wanted = letter_rows(12, seed=7, shortest=3), {"target_risk": 0.3}
    async with served(tmp_path, also_load="newer") as client:
        inputs = [{"text": row["text"]} for row in rows]
        both = {}
        for name in ("heads", "newer"):
            answer = await client.post("/predict", json={"artifact": name, "inputs": inputs, "options": wanted})
            both[name] = answer.json()["predictions"]
        assert (await client.post("/artifacts/newer/shadow", json={"share": 1.0})).status_code == 200
        asked = (await client.post("/predict", json={"inputs": inputs, "options": wanted})).json()["predictions"]
        items = [
            {"prediction_id": one["prediction_id"], "label": row["label"]} for one, row in zip(asked, rows, strict=True)
        ]
        await client.post("/feedback", json={"items": items})
        while (shadow := (await client.get("/shadow")).json()["shadow"])["rows"] < len(rows):
            assert shadow["missed"] == 0
            await asyncio.sleep(0.02)
    for name, found in (("heads", shadow["figures"]["active"]), ("newer", shadow["figures"]["shadow"])):
        pairs = list(zip(both[name], rows, strict=True))
        right, taken = (
            [one["label"] == row["label"] for one, row in pairs],
            [one["decision"] == "accept" for one, _ in pairs],
        )
        assert found["accuracy"] == pytest.approx(sum(right) / len(rows))
        assert found["nll"] == pytest.approx(
            -sum(math.log(one["probs"][row["label"]]) for one, row in pairs) / len(rows), abs=1e-3
        )
        assert found["accepted"] == sum(taken)
    assert both["heads"] != both["newer"]
