"""The OpenAPI document against the running server: valid, invalid and chained requests to every operation it lists.

schemathesis reads the operations off the document, so a new endpoint is tested without a line here. Its phases are the
documented examples, one request per keyword and boundary of each schema, random requests, and chains, in which names
from one answer go into the next request. Everything is drawn from one seed; a quarter of it, or all (``exhaustive``).
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from contract import operations
from exhaustive import drawn
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events
from server_process import FAKE_SERVER, fake_artifacts, server_process
from tiny_runs import FinishedRun

from service.errors import ERROR_KINDS
from service.http.error_answers import schema_of
from service.http.schemas.errors import ErrorResponse
from service.security.keys_file import Key, digest, new_token, write_keys

SEED = 20
#: Shrinking a failure can take minutes; the request that showed it is printed as it was.
ALIKE = {"deterministic": True, "database": "none", "no-shrink": True}
#: 503 is a state that the server may be in, 504 a deadline; the document says where each can come out.
EXPECTED = ["2xx", "3xx", "4xx", "503", "504"]
#: Which fields an input has is the artifact's to say, so 422 may answer what fits the document; timeout_s can be
#: tiny, and bytes that are a text to the document can be compressed, which is refused by 415.
ANY_ARTIFACT = ["2xx", "3xx", "401", "403", "404", "409", "413", "415", "422", "429", "503", "504"]


@schemathesis.serializer("application/jsonl", "application/x-ndjson")
def json_lines(context: Any, value: Any) -> bytes:
    """Text and bytes go out as they are; anything else, which only a wrong request holds, as one line of JSON."""
    data = getattr(value, "data", value)  # schemathesis wraps bytes in a text that is empty
    if isinstance(data, bytes):
        return data
    return (value if isinstance(value, str) else json.dumps(value, default=repr)).encode("utf-8", "surrogatepass")


@schemathesis.deserializer("application/jsonl")
def first_of_json_lines(context: Any, response: Any) -> Any:
    """Return the first line, which is what the document describes; what has none must have nothing."""
    lines = response.content.splitlines()
    return json.loads(lines[0]) if lines else {}


@schemathesis.check
def errors_have_one_shape(ctx: Any, response: Any, case: Any) -> None:
    """Every answer names its request; an error has its path's shape, its code is in the table, its number finite."""
    (request_id,) = response.headers["x-request-id"]
    if response.status_code < 400:
        (kind,) = response.headers.get("content-type", [""])
        texts = {"application/json": [response.content], "application/jsonl": response.content.splitlines()}
        for text in texts.get(kind, []):
            json.loads(text, parse_constant=_refuse)
        return
    assert response.headers["content-type"] == ["application/json"]
    body = schema_of(case.operation.path).model_validate_json(response.content)
    if isinstance(body, ErrorResponse):
        assert body.request_id == request_id
        (kind,) = [kind for kind in ERROR_KINDS if kind.code == body.error.code]
        assert response.status_code == kind.status
        assert ("retry-after" in response.headers) == (kind.retry_after_s is not None)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in an answer")


class Outcome(Counter[tuple[str, str, int]]):
    """How often each operation gave each status, by phase."""

    def count(self, operation: str, *, phase: str | None = None, status: int | None = None) -> int:
        """Return the number of answers that fit."""
        wanted = {phase, operation, status} - {None}
        return sum(times for key, times in self.items() if wanted <= set(key))


def run(
    document: dict[str, Any],
    address: str,
    *,
    examples: int,
    modes: str = "all",
    positive: list[str] = ANY_ARTIFACT,
    token: str | None = None,
    at_random: bool = True,
) -> Outcome:
    """Send what schemathesis makes of a document, and fail with what is wrong of the answers.

    Args:
        examples: random requests per operation.
        modes: ``positive``, ``negative`` or ``all``.
        positive: statuses that requests which fit their schema may be answered with.
        token: API key sent where the document asks for one; schemathesis also tries without it and with others.
        at_random: whether random requests and chains follow the examples and boundaries.
    """
    config = SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "base-url": address,
            "request-timeout": 60,
            "continue-on-failure": True,
            **({} if token is None else {"auth": {"openapi": {"api_key": {"bearer": token}}}}),
            "generation": {"mode": modes, "max-examples": examples, **ALIKE},
            "phases": {phase: {"enabled": at_random} for phase in ("fuzzing", "stateful")},
            "checks": {
                "not_a_server_error": {"expected-statuses": EXPECTED},
                "positive_data_acceptance": {"expected-statuses": positive},
                # With keys, what is not in the table of who may ask for what is refused by 401, before any 405.
                "unsupported_method": {"enabled": token is None},
            },
        }
    )
    outcome, problems = Outcome(), []
    loaded = schemathesis.openapi.from_dict(document, config=config)
    for event in engine.from_schema(loaded).execute():
        if isinstance(event, events.ScenarioFinished):
            for case_id, interaction in event.recorder.interactions.items():
                label = event.recorder.cases[case_id].value.operation.label
                status = 0 if interaction.response is None else interaction.response.status_code
                outcome[event.phase.value, label, status] += 1
            for check in (check for checks in event.recorder.checks.values() for check in checks):
                if check.failure_info is not None:
                    failure, sample = check.failure_info.failure, check.failure_info.code_sample
                    problems.append(f"{failure.operation}: {check.name}: {failure.message}\n{sample[:2000]}")
        elif isinstance(event, events.NonFatalError):
            problems.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    assert not problems, "\n\n".join(problems[:10])
    return outcome


@contextmanager
def serving(command: list[str], **environment: str) -> Iterator[str]:
    """Yield the address of a server, which is as well afterwards as before."""
    with server_process(command, environment) as process, process.client() as client:
        yield str(client.base_url).rstrip("/")
        assert process.popen.poll() is None
        assert '"event": "crash"' not in process.log
        assert client.get("/health/ready").status_code == 200


@contextmanager
def fakes(folder: Path, *flags: str, auth: str = "off") -> Iterator[str]:
    """Yield the address of a server of a text artifact, beside one with choices and one that is broken."""
    root = fake_artifacts(folder, "fake", "choices", "broken")
    command = [FAKE_SERVER, "--artifact", "fake", "--artifacts-root", str(root), *flags]
    with serving(command, FAKE_CHOICES="choices", LAPLORA_AUTH=auth) as address:
        yield address


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with fakes(tmp_path) as address:
        yield address


def test_every_operation_keeps_the_document(address: str) -> None:
    document = httpx.get(f"{address}/openapi.json", timeout=None).json()
    outcome = run(document, address, examples=drawn(40))
    for label in operations(document):
        assert outcome.count(label, phase="coverage"), label
        assert outcome.count(label, phase="fuzzing"), label
    # The chains went on with names that the server gave, not with random ones alone.
    assert outcome.count("POST /artifacts/{name}/activate", phase="stateful", status=202)
    assert outcome.count("POST /predict", status=422)
    assert outcome.count("POST /predict", phase="coverage", status=405)


def test_operations_that_need_a_key_refuse_without_it(tmp_path: Path) -> None:
    keys, token = tmp_path / "keys.json", new_token()
    write_keys(keys, [Key(id="a", sha256=digest(token), scopes=("predict", "evaluate", "admin"))])
    with fakes(tmp_path, "--keys", str(keys), auth="keys") as address:
        document = httpx.get(f"{address}/openapi.json", timeout=None).json()
        outcome = run(document, address, examples=1, token=token, at_random=False)
    protected = {name for name, operation in operations(document).items() if operation.get("security")}
    assert {"POST /predict", "GET /artifacts", "GET /metrics"} <= protected
    for label in operations(document):
        assert outcome.count(label) > outcome.count(label, status=401), label
        # Unknown methods of any path need a key as well; of these operations the documented one does.
        assert label not in protected or outcome.count(label, status=401), label


def narrowed(document: dict[str, Any], artifact: str) -> dict[str, Any]:
    """Return the document with the fields that a review's artifact has, for operations that score inputs."""
    document = copy.deepcopy(document)
    document["paths"] = {path: document["paths"][path] for path in ("/predict", "/evaluate")}
    schemas = document["components"]["schemas"]
    text = {"type": "string", "minLength": 1, "maxLength": 60, "pattern": r"^[^\s\u0000-\u001f]+$"}
    label = {"enum": ["negative", "positive"]}
    for name, fields in (("Input", {"text": text}), ("LabelledInput", {"text": text, "label": label})):
        closed = {"required": list(fields), "additionalProperties": False}
        schemas[name] = {"type": "object", "properties": fields, **closed}
    for name in ("PredictRequest", "EvaluateRequest"):
        schemas[name]["properties"]["inputs"]["maxItems"] = 8
        schemas[name]["properties"]["artifact"] = {"enum": [artifact, None]}
        schemas[name]["required"] += ["options"]
    schemas["PredictOptions"]["properties"]["predictive"] = {"enum": [None]}
    for name in ("PredictOptions", "EvaluateOptions"):
        schemas[name]["properties"] |= {"truncate": {"enum": [True]}}
        schemas[name]["properties"]["timeout_s"] = {"enum": [None, 60.0]}
        schemas[name]["required"] = ["truncate"]
    by_label = {"type": "object", "properties": {"*": {"enum": [0.1]}, "negative": {"enum": [0.3]}}}
    risks = {"anyOf": [{"enum": [None, 0.2]}, by_label | {"required": ["*"], "additionalProperties": False}]}
    costs = {"enum": [None, {"review": 1.0, "wrong": {"negative": 9.0, "*": 2.0}}]}
    schemas["PredictOptions"]["properties"] |= {"target_risk": risks, "costs": {"enum": [None]}}
    schemas["EvaluateOptions"]["properties"] |= {"target_risk": {"enum": [None]}, "costs": costs}
    # A thousand resamples are most of an evaluation's time.
    schemas["EvaluateOptions"]["properties"]["resamples"]["maximum"] = 12
    schemas["EvaluateOptions"]["required"] += ["resamples"]
    return document


def test_every_request_that_fits_the_artifact_is_answered(address: str) -> None:
    document = narrowed(httpx.get(f"{address}/openapi.json", timeout=None).json(), "fake")
    outcome = run(document, address, examples=drawn(60), modes="positive", positive=["200"])
    for label in operations(document):
        assert outcome.count(label, phase="fuzzing", status=200) >= drawn(60) // 2


@pytest.mark.exhaustive
def test_a_real_tiny_artifact_keeps_it_too(sentiment_run: FinishedRun) -> None:
    name, root = sentiment_run.artifact.name, sentiment_run.artifact.parent
    command = ["-m", "service", "--artifact", name, "--artifacts-root", str(root), "--device", "cpu"]
    with serving(command, LAPLORA_AUTH="off") as address:
        document = httpx.get(f"{address}/openapi.json", timeout=None).json()
        outcome = run(narrowed(document, name), address, examples=20, modes="positive", positive=["200"])
        for label in ("POST /predict", "POST /evaluate"):
            assert outcome.count(label, phase="fuzzing", status=200) >= 10
        run(document, address, examples=1, at_random=False)
