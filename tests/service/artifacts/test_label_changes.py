"""Other labels for an artifact of a running server: answers, feedback on old ones, the history, and undo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import changed, code, settings, started
from test_relabelling import fitted, rows_of

from service.app import create_app

pytestmark = pytest.mark.anyio


async def test_labels_change_under_servers_and_change_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    fitted(tmp_path)
    own: Any = {"artifact": "heads", "artifacts_root": tmp_path, "jobs_dir": tmp_path / "jobs", "conditioning": True}
    rows, asked = rows_of({"shop": "shop"}, 10, seed=1), rows_of({"bill": "bill", "shop": "shop"}, 6, seed=5)
    inputs = {"inputs": [{"text": row["text"]} for row in asked]}
    async with started(create_app(settings(**own, device="cpu"))) as client:
        (before,) = [one for one in (await client.get("/artifacts")).json()["artifacts"] if one["loaded"]]
        old = (await client.post("/predict", json=inputs)).json()["predictions"]
        body = {"rows": rows, "changes": {"add": ["shop"], "rename": {"bill": "invoice"}}, "digest": before["digest"]}
        for wrong, refused in (
            ({"changes": {"removed": ["bill"]}}, (422, "invalid_request")),
            (body | {"rows": rows[:4]}, (422, "conditioning_impossible")),
            (body | {"changes": {"rename": {"bill": "x"}}}, (422, "invalid_input")),
            (body | {"digest": "sha256:other"}, (409, "artifact_changed")),
        ):
            assert code(await changed(client, "heads/condition", json=wrong)) == refused
        done = await changed(client, "heads/condition", json=body)
        (after,) = [one for one in (await client.get("/artifacts")).json()["artifacts"] if one["loaded"]]
        assert (done.json()["previous"], done.json()["rows"]) == (before["digest"], 72)
        assert after["labels"] == ["invoice", "order", "parcel", "return", "shop"]
        assert (before["label_changes"], after["label_changes"][0]["of"]) == ([], before["digest"])
        new = (await client.post("/predict", json=inputs)).json()["predictions"]
        assert {name for one in new for name in (*one["probs"], *one["prediction_set"])} == set(after["labels"])
        for one, label, status in ((old[0], "bill", 200), (old[1], "invoice", 422), (new[0], "invoice", 200)):
            told = {"items": [{"prediction_id": one["prediction_id"], "label": label}]}  # one of its own labels
            assert (await client.post("/feedback", json=told)).status_code == status
    async with started(create_app(settings(**own, device="cpu"))) as client:
        assert (await client.post("/predict", json=inputs)).json()["artifact"]["digest"] == after["digest"]
        undone = await changed(client, "heads/condition/undo", json={})
        assert undone.json()["artifact"]["digest"] == before["digest"]
