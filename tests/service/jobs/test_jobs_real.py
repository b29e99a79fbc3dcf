"""A real model: a job and POST /evaluate give the same figures. Every row runs alone, so to the last bit."""

from __future__ import annotations

import json
import time

from server_process import server_process
from tiny_runs import FinishedRun

WORDS = ("warm", "dull", "gripping", "hollow", "funny", "tedious")
ROWS = [
    {"text": f"a {first} and {second} film .", "label": "positive" if i % 2 == 0 else "negative"}
    for i, first in enumerate(WORDS)
    for second in WORDS[:3]
]


def test_a_job_says_what_evaluate_says(sentiment_run: FinishedRun) -> None:
    upload = "".join(json.dumps(row) + "\n" for row in ROWS)
    command = ["-m", "service", "--artifact", str(sentiment_run.artifact), "--device", "cpu", "--batch-tokens", "1"]
    with server_process(command) as process, process.client() as client:
        response = client.post(
            "/evaluate/jobs?resamples=50", content=upload, headers={"content-type": "application/x-ndjson"}
        )
        assert response.status_code == 202, response.text
        while (job := client.get(response.headers["location"]).json())["status"] != "done":
            assert job["status"] in ("queued", "running"), job
            time.sleep(0.05)
        direct = client.post("/evaluate", json={"inputs": ROWS, "options": {"resamples": 50}}).json()
    del direct["timing_ms"]
    assert 0 <= direct["unfamiliar"] <= 1
    assert job["result"] == direct
    assert job["result"]["rows"] == len(ROWS)
    assert {"map", "laplace", "temperature"} <= set(job["partial"])
