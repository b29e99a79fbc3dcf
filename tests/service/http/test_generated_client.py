"""A client that openapi-python-client generates from the server's document works against the server."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from contract import operations
from server_process import fake_artifacts, fake_server

PACKAGE = "laplora_generated"
#: The generator knows JSON and files; JSON Lines are a file to it.
AS_BYTES = dict.fromkeys(("application/jsonl", "application/x-ndjson"), "application/octet-stream")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server of two artifacts, by the package that is generated from its document."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yaml").write_text(json.dumps({"post_hooks": [], "content_type_overrides": AS_BYTES}))
    root = fake_artifacts(folder, "fake", "choices")
    with fake_server(root, "--max-inputs", "4", FAKE_CHOICES="choices") as process, process.client() as plain:
        address = str(plain.base_url).rstrip("/")
        command = [sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{address}/openapi.json"]
        command += ["--output-path", str(folder / PACKAGE), "--meta", "none", "--config", str(folder / "config.yaml")]
        done = subprocess.run([*command, "--fail-on-warning"], capture_output=True, text=True)
        # A warning is where the generator leaves an endpoint out.
        assert done.returncode == 0, done.stdout + done.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            with importlib.import_module(PACKAGE).Client(base_url=address) as client:
                yield client
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def api(name: str) -> ModuleType:
    """Return the generated module of an operation, such as ``scoring.predict``."""
    return importlib.import_module(f"{PACKAGE}.api.{name}")


def models() -> Any:
    return importlib.import_module(f"{PACKAGE}.models")


def texts(*values: str) -> list[Any]:
    return [models().Input.from_dict({"id": f"r{i}", "text": value}) for i, value in enumerate(values)]


def test_every_operation_has_its_function(client: Any) -> None:
    document = client.get_httpx_client().get("/openapi.json").json()
    (package,) = importlib.import_module(PACKAGE).__path__
    made = {path.stem: path.parent.name for path in Path(package).glob("api/*/*.py") if path.stem != "__init__"}
    assert made.keys() == {operation["operationId"] for operation in operations(document).values()}
    for operation, tag in made.items():
        assert callable(api(f"{tag}.{operation}").sync_detailed)


def test_predict(client: Any) -> None:
    m = models()
    options = m.PredictOptions(covariance=True, target_risk=0.2, detail=m.PredictOptionsDetail.FULL)
    body = m.PredictRequest(inputs=texts("review 5000", "review 90000"), artifact="fake", options=options)
    answer = api("scoring.predict").sync(client=client, body=body)
    assert isinstance(answer, m.PredictResponse)
    assert (answer.artifact.name, answer.target_risk) == ("fake", 0.2)
    assert [p.id for p in answer.predictions] == ["r0", "r1"]
    assert answer.predictions[0].probs.to_dict() == pytest.approx({"negative": 0.05, "positive": 0.95})
    assert answer.predictions[0].logit_covariance == [[0.1, 0.1], [0.1, 0.1]]
    assert answer.predictions[0].uncertainty.epistemic == 0.1
    # Refusals are typed too.
    many = m.PredictRequest(inputs=texts(*"abcde"))
    refused = api("scoring.predict").sync(client=client, body=many)
    assert isinstance(refused, m.ErrorResponse)
    assert (refused.error.code, refused.error.field, refused.error.limit) == ("batch_too_large", "inputs", 4)


def test_a_job(client: Any) -> None:
    lines = b"".join(json.dumps({"text": f"review {i}", "label": "positive"}).encode() + b"\n" for i in range(9))
    file = importlib.import_module(f"{PACKAGE}.types").File(payload=BytesIO(lines))
    submitted = api("jobs.submit_job").sync(client=client, body=file, resamples=10)
    assert isinstance(submitted, models().JobOut)
    while (job := api("jobs.get_job").sync(submitted.id, client=client)).status.value not in ("done", "failed"):
        time.sleep(0.02)
    assert job.status.value == "done"
    assert job.result.methods["laplace"].accuracy == 1.0
    assert isinstance(api("jobs.get_job").sync("nobody", client=client), models().ErrorResponse)


def test_other_servers_protocols(client: Any) -> None:
    m = models()
    assert api("protocols.v1_models").sync(client=client).data[0].id == "fake"
    answer = api("protocols.classify").sync(client=client, body=m.ClassifyRequest(input_=["review 5000", "b"]))
    assert answer.data[0].probs == pytest.approx([0.05, 0.95])
    unknown = m.ClassifyRequest(input_=["a"], model="nobody")
    refused = api("protocols.v1_classify").sync(client=client, body=unknown)
    assert isinstance(refused, m.VllmErrorResponse)
    assert (refused.error.code, refused.error.type_) == (404, "artifact_not_found")
    batch = api("protocols.tei_predict").sync(client=client, body=m.TeiPredictRequest(inputs=[["review 5000"], ["b"]]))
    assert [one.label for one in batch[0]] == ["positive", "negative"]
    refused = api("protocols.tei_predict").sync(client=client, body=m.TeiPredictRequest(inputs=["a", "b"]))
    assert isinstance(refused, m.TeiErrorResponse)
