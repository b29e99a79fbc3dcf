"""The errors: one status, code and meaning each. The codes are held by the snapshot of the API's document."""

from __future__ import annotations

import json

import pytest

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
