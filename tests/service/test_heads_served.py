"""Heads over HTTP, with and without an adapter: the numbers that memory gives, refusals, labels that come later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from head_artifacts import letter_rows, letters
from serving import changed, settings, started
from tiny_models import add_lora, tiny_base
from tiny_sentence_encoder import sentence_encoder_folder
from transformers import AutoModelForCausalLM

import laplora
from service.app import create_app

LABELS = {"no": " w1", "yes": " w2"}
Rows = list[dict[str, Any]]
pytestmark = pytest.mark.anyio


def fitted(folder: Path, *, adapted: bool) -> laplora.CalibratedPosterior:
    """Return heads on a tiny decoder and a tiny sentence encoder, beside an adapter or alone."""
    tokenizer = letters("[CLS] $A")
    tiny_base("llama").save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    encoder = sentence_encoder_folder(folder / "encoder", letters("[CLS] $A [SEP]"))
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base")
    if adapted:
        model = add_lora(model, ["q_proj", "v_proj"], dtype=None)
    classifier = laplora.Classifier(model, tokenizer, "{text} z", LABELS, max_tokens=16)
    experts = {"names": ["frozen", "encoder"], "encoder": str(encoder)}
    own = laplora.FitSettings.model_validate({"experts": experts, "laplace": {"joint_rank": 8, "prior": "evidence"}})
    rows = letter_rows(80, shortest=3)
    given = (rows[:40], rows[40:]) if adapted else (rows,)
    found = laplora.fit(classifier, *given, settings=own, progress=False)
    found.save(folder / "heads", base=str(folder / "base"))
    return found


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    own = settings(artifact="heads", artifacts_root=folder, conditioning=True)
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
        # Labels that come later move every head as they do in memory, and can be taken back.
        more = [{**row, "text": f"k {row['text']}"} for row in letter_rows(24, seed=5, shortest=3)]
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
