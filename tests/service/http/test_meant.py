"""A refused request's message names what was probably meant, and holds no value that was sent."""

from __future__ import annotations

from typing import Any

import pytest
from serving import Served

pytestmark = pytest.mark.anyio

TEXT = "unmistakable"
ROW = {"text": TEXT}
#: Path, body, and what its message says; None: nothing is likely.
WRONG: list[tuple[str, Any, str | None]] = [
    ("/predict", ROW, 'text is a field of an input: send {"inputs": [{"text": ...}]}'),
    ("/predict", {"inputs": [ROW], "target_risk": 0.1}, 'target_risk stands in options: send {"options": {"target_'),
    ("/predict", {"inputs": [ROW], "options": {"artifact": "a"}}, 'artifact stands beside options: send {"artifact":'),
    ("/predict", {"inputs": [ROW], "mode": "map"}, "for mode send options.predictive"),
    ("/predict", {"inputs": [ROW], "options": {"mode": "map"}}, "for mode send options.predictive"),
    ("/predict", {"inputs": [ROW], "options": {"target_rsik": 0.1}}, "for target_rsik send options.target_risk"),
    ("/predict", {"inputs": [ROW], "option": {}}, "for option send options"),
    ("/predict", {"inputs": [ROW], "options": {"target_risk": 5}}, "5 % is 0.05"),
    ("/predict", {"inputs": [ROW], "model": "fake"}, "for model send artifact"),
    ("/predict", {"inputs": TEXT}, 'send {"inputs": [{"text": ...}]}'),
    ("/predict", {"inputs": [TEXT]}, 'send {"inputs": [{"text": ...}]}'),
    ("/predict", {"inputs": [["a"]]}, "each of inputs is an object of the template's fields"),
    ("/predict", {"inputs": ROW}, 'inputs is a list: send {"inputs": [{"text": ...}]}'),
    ("/predict", {"texts": [TEXT]}, "for texts send inputs"),
    ("/predict", [ROW], 'a body is an object: send {"inputs": [...]}'),
    ("/predict", {"inputs": [ROW], "zzzzzz": 1}, None),
    ("/evaluate", {**ROW, "label": "positive"}, 'send {"inputs": [{"text": ...}]}'),
    ("/evaluate", {"inputs": [{**ROW, "label": "positive"}], "bins": 3}, 'send {"options": {"bins": ...}}'),
    ("/suggest", {"inputs": [ROW], "count": 3}, 'send {"options": {"count": ...}}'),
    ("/feedback", {"prediction_id": TEXT, "label": "positive"}, 'send {"items": [{"prediction_id": ...}]}'),
    ("/v1/predict", ROW, 'send {"inputs": [{"text": ...}]}'),
]


async def test_what_was_meant_is_named(served: Served) -> None:
    for path, body, said in WRONG:
        answer = await served.client.post(path, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "invalid_request"), body
        assert TEXT not in answer.text
        if said is None:
            assert "Probably meant" not in error["message"]
        else:
            assert said in error["message"].partition("Probably meant: ")[2], (body, error["message"])
    # A name that is no field of the template is told of beside those that are.
    wrong = (await served.client.post("/predict", json={"inputs": [{"txt": "a"}]})).json()["error"]["message"]
    assert "['text']" in wrong
