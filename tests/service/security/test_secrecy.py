"""What is asked stays between client and server: not in the log at its most talkative, nor in metrics or errors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import Process, server_process
from tiny_runs import FinishedRun

from service.security.keys_file import Key, digest, new_token, write_keys

WORD = "Zanzibarquux"
#: In the place of a field's name. One that reads like a name, such as txet, is named in the refusal on purpose.
NAME = f"{WORD} said so ."
TOKEN = new_token()
JSON_LINES = {"content-type": "application/jsonl"}
GOOD = {"id": WORD, "text": f"The film was {WORD} ."}
OPTIONS = ("predictive", "target_risk", "covariance", "truncate")


def bad_bodies(**more: Any) -> list[Any]:
    """Bodies that are refused, with the word in each place that a body has."""
    item = {**GOOD, **more}
    return [
        {"inputs": [{**item, NAME: 1}]},
        {"inputs": [{**item, "text": {NAME: WORD}}]},
        {"inputs": [{**item, "text": f"{WORD} " * 5000}]},
        {"inputs": [{"id": {NAME: 1}, "text": WORD}]},
        {"inputs": [{"id": WORD * 100, "text": WORD}]},
        {"inputs": [item, item]},
        {"inputs": [{"question": WORD, "choices": [WORD, WORD]}]},
        {"inputs": [{"prompt": WORD, "text": WORD}]},
        {"inputs": [{"prompt": [WORD]}]},
        {"inputs": WORD, "raw_scores": WORD},
        {"inputs": [WORD, 3]},
        {NAME: WORD},
        [WORD],
        WORD,
        {"inputs": [item], "artifact": WORD},
        {"inputs": [item], "artifact": {NAME: 1}},
        {"inputs": [item], "options": WORD},
        {"inputs": [item], "options": {NAME: WORD}},
        *({"inputs": [item], "options": {name: WORD}} for name in OPTIONS),
        {"inputs": [item], NAME: 1},
    ]


RAW = [
    f'{{"inputs": [{{"text": "{WORD}}}',
    f'{{"inputs": [{{"text": "{WORD}\\ud800"}}]}}',
    f'{{"inputs": [{{"text": "{WORD}", "text": "{WORD}"}}]}}',
    f'{{"{NAME}": NaN}}',
    f"{WORD}",
    f'{{"inputs": [{{"text": "{WORD}"}}]}}'.encode("utf-16"),
    b"\xff" + WORD.encode(),
]


@pytest.fixture
def process(sentiment_run: FinishedRun, tmp_path: Path) -> Iterator[Process]:
    """A server of a real artifact, its jobs in ``jobs`` of the test's folder."""
    keys = tmp_path / "keys.json"
    write_keys(keys, [Key(id="tester", sha256=digest(TOKEN), scopes=("predict", "evaluate", "admin"))])
    artifact = sentiment_run.artifact
    command = ["-m", "service", "--artifact", str(artifact), "--artifacts-root", str(artifact.parent)]
    command += ["--device", "cpu", "--log-level", "debug", "--auth", "keys", "--keys", str(keys)]
    with server_process([*command, "--jobs-dir", str(tmp_path / "jobs")]) as process:
        yield process


def finished_job(client: httpx.Client) -> None:
    """Run a job whose rows hold the word to its end."""
    line = json.dumps({**GOOD, "label": "positive"})
    sent = client.post("/evaluate/jobs?keep_rows=false", content=line, headers=JSON_LINES)
    assert sent.status_code == 202, sent.text
    while (status := client.get(f"/evaluate/jobs/{sent.json()['id']}").json()["status"]) != "done":
        assert status in ("queued", "running", "paused"), status
        time.sleep(0.02)


def test_the_word_stays_between_client_and_server(process: Process, tmp_path: Path) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "x-request-id": "kept-1"}
    with process.client() as client:
        client.headers.update(headers)
        answered = [
            client.post("/predict", json={"inputs": [GOOD]}),
            client.post("/predict", json={"inputs": [{"prompt": WORD}], "options": {"covariance": True}}),
            client.post("/predict", json={"inputs": [GOOD], "options": {"truncate": True, "predictive": "map"}}),
            client.post("/evaluate", json={"inputs": [{**GOOD, "label": "positive"}]}),
        ]
        assert [answer.status_code for answer in answered] == [200] * 4
        derived = next(iter(client.get("/artifacts").json()["artifacts"]))["question"]
        asked = {name: derived[name] for name in ("type", "instructions", "criteria")}
        foreign = client.post("/v1/systemone", json={"state": WORD, "questions": {NAME: asked}})
        assert foreign.status_code == 200
        finished_job(client)
        refused = [client.post("/predict", json=body) for body in bad_bodies()]
        refused += [client.post("/evaluate", json=body) for body in bad_bodies(label="positive")]
        for wrong in (WORD, {NAME: WORD}, [WORD], None):
            refused.append(client.post("/evaluate", json={"inputs": [{**GOOD, "label": wrong}]}))
        for question in (
            asked | {"instructions": WORD},
            asked | {"criteria": {NAME: WORD, "b": 3}},
            {"type": WORD},
            WORD,
        ):
            refused.append(client.post("/v1/systemone", json={"state": WORD, "questions": {NAME: question}}))
        refused.append(client.post("/v1/systemone", json={"state": {WORD: WORD}, "questions": {NAME: asked}}))
        refused.append(client.post("/v1/systemone", json={"state": "a", "questions": {NAME: asked}, "model": WORD}))
        for path in ("/predict", "/evaluate"):
            json_type = {"content-type": "application/json"}
            refused += [client.post(path, content=raw, headers=json_type) for raw in RAW]
            refused.append(client.post(path, content=WORD, headers={"content-type": f"text/{WORD}"}))
        refused += [
            client.post("/predict", json={"inputs": [GOOD]}, headers={"authorization": f"Bearer {WORD}"}),
            client.post(f"/artifacts/{WORD}/activate"),
            client.get(f"/{WORD}"),
            client.get(f"/{WORD}?{WORD}={WORD}"),
            client.request(WORD.upper(), "/predict"),
        ]
        known = answered[0].json()["predictions"][0]["prediction_id"]
        for item in ({"prediction_id": known, "label": WORD}, {"prediction_id": known, NAME: 1}, WORD):
            refused.append(client.post("/feedback", json={"items": [item]}))
        refused.append(client.get(f"/evaluate/jobs/{WORD}"))
        # A column that the template does not know is none of the things that are wrong with an upload.
        for body in bad_bodies(label="positive")[1:10]:
            lines = "\n".join(map(json.dumps, body["inputs"]))
            refused.append(client.post("/evaluate/jobs", content=lines, headers=JSON_LINES))
        refused += [client.post("/evaluate/jobs", content=raw, headers=JSON_LINES) for raw in RAW]
        refused.append(client.post(f"/evaluate/jobs?bins={WORD}&{NAME}={WORD}", content=b"{}", headers=JSON_LINES))
        metrics = client.get("/metrics").text
    for answer in refused:
        assert 400 <= answer.status_code < 500, answer.text
        assert WORD.lower() not in (answer.text + str(answer.headers)).lower(), answer.text
    process.popen.terminate()
    assert process.left() == 0
    assert len([line for line in process.lines if '"event": "request"' in line]) > len(refused)
    assert '"level": "debug"' in process.log, "the log is read at its most talkative"
    left = [file for file in (tmp_path / "jobs").rglob("*") if file.is_file()]
    assert left
    assert [file.name for file in left if WORD.encode() in file.read_bytes()] == []
    for secret in (WORD.lower(), TOKEN.lower(), digest(TOKEN)):
        assert secret not in metrics.lower()
        assert secret not in process.log.lower()
