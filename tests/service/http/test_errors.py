"""The errors: one status, code and meaning each. The codes are held by the snapshot of the API's document."""

from __future__ import annotations

import json

import pytest
from serving import Served

from laplora import errors as library
from service import errors
from service.errors import ERROR_KINDS, error_content, kind_of, retry_after_s
from service.http.error_answers import error_response


@pytest.mark.parametrize("kind", ERROR_KINDS, ids=lambda kind: kind.code)
def test_each_row_answers_with_its_status_and_shape(kind: errors.ErrorKind) -> None:
    numbers = {"limit": 5, "got": 9} if kind.raised is library.TooManyTokensError else {}
    response = error_response(kind.raised("a message", **numbers))
    body = json.loads(bytes(response.body))
    assert response.status_code == kind.status
    assert set(body) == {"error", "request_id"}
    assert body["error"]["code"] == kind.code
    assert body["error"]["message"]
    assert ("retry-after" in response.headers) == (kind.status in (429, 503))
    assert response.headers.get("www-authenticate") == ("Bearer" if kind.status == 401 else None)


def test_codes_and_exceptions_come_once_and_subclasses_take_the_nearest_row() -> None:
    assert len({kind.code for kind in ERROR_KINDS}) == len({kind.raised for kind in ERROR_KINDS}) == len(ERROR_KINDS)
    assert [cls for cls in errors.ServiceError.__subclasses__() if kind_of(cls("x")).raised is not cls] == []
    assert kind_of(library.ArtifactIncompatibleError("x")).code == "artifact_incompatible"
    assert kind_of(library.PriorError("x")).code == "internal_error"


def test_numbers_and_field_are_sent_where_known_and_messages_are_kept_back_cut_or_repaired() -> None:
    error = errors.BatchTooLargeError("too many", field="inputs", limit=5, got=6)
    assert error_content(error, "r1") == {
        "error": {"code": "batch_too_large", "message": "too many", "field": "inputs", "limit": 5, "got": 6},
        "request_id": "r1",
    }
    assert "secret" not in json.dumps(error_content(KeyError("secret prompt"), "r1"))
    assert [retry_after_s(errors.QueueFullError("full", **given)) for given in ({"retry_after_s": 17}, {})] == [17, 1]
    content = error_content(library.InvalidInputError("x" * 5000 + "\ud800", field="\udfff" * 5000), "r1")
    assert len(json.dumps(content, ensure_ascii=False).encode()) < 2000


@pytest.mark.anyio
async def test_the_first_16_problems_are_told_at_once_and_no_text_of_the_users(served: Served) -> None:
    secret = "zebra secret " * 30
    wrong = {"id": secret, "text": secret, "label": [secret, 7]}
    body = {"inputs": [wrong] * 200, "options": {secret: 1, "bins": secret}, "artifact": [secret]}
    response = await served.client.post("/evaluate", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["problems_count"]) == (422, "invalid_request", 403)
    assert [problem["field"] for problem in error["problems"][:3]] == ["inputs.0.id", "inputs.0.label", "inputs.1.id"]
    assert len(error["problems"]) == 16
    assert (error["field"], error["limit"]) == ("inputs.0.id", 256)
    assert error["message"].startswith("inputs.0.id: String should have at most 256 characters; inputs.0.label: ")
    del body["inputs"]
    other = (await served.client.post("/evaluate", json=body)).json()["error"]
    fields = {problem["field"] for problem in other["problems"]}
    assert fields == {"inputs", "options.bins", "options.?", "artifact"}
    foreign = await served.client.post(
        "/v1/systemone", json={"state": [secret], "questions": secret, "model": [secret]}
    )
    assert {problem["loc"][1] for problem in foreign.json()["detail"]} == {"questions", "model"}
    for text in (response.text, json.dumps(other), foreign.text):
        assert "zebra" not in text
        assert len(text) < 4000
    one = (await served.client.post("/predict", json={"inputs": []})).json()["error"]
    assert set(one) == {"code", "message", "field", "limit", "got"}
