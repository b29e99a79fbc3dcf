"""A server whose artifacts lie elsewhere: fetched at its start, served as any other, and changed by nobody."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from remote_servers import web_server
from serving import changed, code, settings, started
from tiny_runs import FinishedRun

from laplora.artifact.folder import read_artifact
from service.app import create_app

pytestmark = pytest.mark.anyio


async def test_artifacts_from_elsewhere_answer_and_stay_as_they_are(
    sentiment_run: FinishedRun, mixture_run: FinishedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = sentiment_run.artifact, mixture_run.artifact
    for folder in (first, second):
        shutil.copytree(folder, tmp_path / "site" / folder.name)
    caplog.set_level("DEBUG")
    with web_server(tmp_path / "site") as web:
        web.needs = "signature=hidden"
        addresses = [f"{web.url}/{folder.name}?{web.needs}" for folder in (first, second)]
        wanted = settings(
            artifact=addresses[0],
            also_load=addresses[1],
            allowed_bases=f"other,{sentiment_run.base}",
            cache=tmp_path / "cache",
            device="cpu",
            conditioning=True,
        )
        async with started(create_app(wanted)) as client:
            listed = await client.get("/artifacts")
            assert [(one["name"], one["loaded"], one["digest"]) for one in listed.json()["artifacts"]] == [
                (folder.name, True, read_artifact(folder).digest) for folder in (first, second)
            ]
            asked = len(web.asked)
            for name in (first.name, second.name):
                body = {"inputs": [{"text": "The film was superb."}], "artifact": name}
                answer = await client.post("/predict", json=body)
                assert answer.status_code == 200, answer.text

            # What was fetched at the start is known by its name, also after it was unloaded.
            assert (await client.post(f"/artifacts/{second.name}/unload")).status_code == 200
            assert (await changed(client, f"{second.name}/load")).status_code == 200

            rows = [{"text": "a film", "label": "positive"}] * 20
            refused = await changed(client, f"{first.name}/condition", json={"rows": rows, "force": True})
            assert code(refused) == (409, "artifact_not_writable")
            assert "laplora pull" in refused.json()["error"]["message"]

            # No client names an address.
            for name in (addresses[0], addresses[0].replace("/", "%2F"), f"{web.url}/{first.name}"):
                for change in ("load", "activate"):
                    answer = await changed(client, f"{name}/{change}")
                    assert answer.status_code == 404, answer.text
            body = {"inputs": [{"text": "a"}], "artifact": addresses[0]}
            assert (await client.post("/predict", json=body)).status_code in (404, 422)
            assert len(web.asked) == asked
            shown = listed.text + refused.text + (await client.get("/health/ready")).text
    logged = " ".join(record.getMessage() for record in caplog.records if record.name != "httpx")  # the tests' client
    assert "hidden" not in shown + logged
    assert str(tmp_path) not in shown


async def failed_start(**values: Any) -> None:
    """Wait for a server's start to fail; it is not ready meanwhile."""
    failures: list[Exception] = []
    app = create_app(settings(device="cpu", **values), on_load_failure=failures.append)
    async with started(app, ready=False) as client:
        while not failures:
            assert (await client.get("/health/ready")).status_code == 503


async def test_an_artifact_that_asks_for_more_than_is_allowed_is_not_served(
    sentiment_run: FinishedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = sentiment_run.artifact.name
    shutil.copytree(sentiment_run.artifact, tmp_path / "site" / name)
    limits: list[tuple[dict[str, Any], str]] = [
        ({}, "a folder of this machine"),
        ({"allowed_bases": "*", "max_fetch_bytes": 1000}, "more than 1000: --max-fetch-bytes"),
        ({"allowed_bases": "*", "max_fetch_files": 2}, "more than 2: --max-fetch-files"),
    ]
    with web_server(tmp_path / "site") as web:
        for values, said in limits:
            caplog.clear()
            await failed_start(artifact=f"{web.url}/{name}", cache=tmp_path / "cache", **values)
            assert said in caplog.text
        assert web.asked == [f"/{name}/manifest.json"] * len(limits)


async def test_a_start_without_its_artifact_or_with_two_of_one_name_fails_by_name(
    sentiment_run: FinishedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second would take the place of the first, and requests choose by the name."""
    name = sentiment_run.artifact.name
    for folder in ("site/one", "site/two", "root"):
        shutil.copytree(sentiment_run.artifact, tmp_path / folder / name)
    manifest = tmp_path / "site" / "two" / name / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"created": "2026-01-01T00:00:00Z"}))
    with web_server(tmp_path / "site") as web:
        for second in (f"{web.url}/two/{name}", name):
            caplog.clear()
            places = {"artifacts_root": tmp_path / "root", "cache": tmp_path / "cache", "allowed_bases": "*"}
            await failed_start(artifact=f"{web.url}/one/{name}", also_load=second, **places)
            assert f"two of the artifacts to start with are called {name!r}" in caplog.text
        await failed_start(artifact=f"{web.url}/nowhere?signature=hidden", cache=tmp_path / "cache")
    assert f"no artifact at {web.url}/nowhere" in caplog.text
    assert "hidden" not in caplog.text
