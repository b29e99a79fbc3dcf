"""Nothing that a client can send is answered with a 500, and nothing it sent is echoed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, code, serve

from laplora.prompts.templates import TEMPLATES
from service.http.schemas.errors import ErrorResponse

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
SECRET = "zebra-secret"

NOT_JSON = {
    "empty": b"",
    "cut": b'{"inputs": [{"text": "a"',
    "nan": b'{"inputs": [{"text": NaN}]}',
    "lone surrogate": b'{"inputs": [{"text": "a \\ud800 b"}]}',
    "surrogate bytes": b'{"inputs": [{"text": "\xed\xa0\x80"}]}',
    "raw control": b'{"inputs": [{"text": "a\x00b"}]}',
    "binary": bytes(range(256)),
    "utf-16": '{"inputs": [{"text": "a"}]}'.encode("utf-16"),
    "two values": b"{} {}",
    "bom": b'\xef\xbb\xbf{"inputs": [{"text": "a"}]}',
    "nested objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "nested inside": b'{"inputs": [{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}]}",
    "enormous integer": b'{"inputs": [{"text": ' + b"9" * 10_000 + b"}]}",
    "key twice": b'{"inputs": [{"text": "a"}], "inputs": [{"text": "b"}]}',
    "field twice": b'{"inputs": [{"text": "a", "text": "zebra-secret"}]}',
    "key twice, escaped": b'{"inputs": [{"text": "a", "t\\u0065xt": "b"}]}',
    "key twice in a large body": b'{"inputs": [{"text": "' + b"a" * 100_000 + b'", "id": "a", "id": "b"}]}',
}


async def test_what_is_not_json_is_422(served: Served) -> None:
    for name, raw in NOT_JSON.items():
        for path in ("/predict", "/evaluate"):
            response = await served.client.post(path, content=raw, headers=JSON)
            assert code(response) == (422, "invalid_json"), name
            assert SECRET not in response.text


ONE = {"inputs": [{"text": "a"}]}
#: Bodies, and the field that the refusal names.
NOT_A_REQUEST: list[tuple[Any, str]] = [
    (None, "body"),
    (SECRET, "body"),
    ({}, "inputs"),
    ({"inputs": []}, "inputs"),
    ({"inputs": [SECRET], "options": {}}, "inputs.0"),
    ({"inputs": [{"id": 5, "text": "a"}]}, "inputs.0.id"),
    ({"inputs": [{"id": "x" * 100_000, "text": "a"}]}, "inputs.0.id"),
    ({"inputs": [{"id": "a", "text": "a"}, {"id": "a", "text": "b"}]}, "inputs.1.id"),
    ({"inputs": [{}]}, "inputs.0.text"),
    ({"inputs": [{"text": " \n\t"}]}, "inputs.0.text"),
    ({"inputs": [{"text": "a"}, {"text": {}}]}, "inputs.1.text"),
    ({"inputs": [{"text": "a", "txet": SECRET}]}, "inputs.0.txet"),
    ({"inputs": [{"question": "a", "choices": ["b", "c"]}]}, "inputs.0.text"),
    ({"inputs": [{"prompt": "a", "text": "b"}]}, "inputs.0.prompt"),
    ({"inputs": [{"prompt": ""}]}, "inputs.0.prompt"),
    ({**ONE, "options": {"speed": 1}}, "options.speed"),
    ({**ONE, "options": {"predictive": SECRET}}, "options.predictive"),
    ({**ONE, "options": {"covariance": "true"}}, "options.covariance"),
    *(({**ONE, "options": {"timeout_s": value}}, "options.timeout_s") for value in (0, -1, "5", True)),
    *(({**ONE, "options": {"target_risk": value}}, "options.target_risk") for value in (0, 1, -0.1, "0.1")),
    ({**ONE, "artifact": "x" * 5000}, "artifact"),
]


async def test_what_does_not_fit_is_422_and_names_the_field(served: Served) -> None:
    for body, field in NOT_A_REQUEST:
        response = await served.client.post("/predict", content=json.dumps(body), headers=JSON)
        assert response.status_code == 422
        assert ErrorResponse.model_validate(response.json()).error.field == field
        assert len(response.content) < 2000
        assert SECRET not in response.text


async def test_integers_may_be_written_with_a_point_but_not_be_fractions_words_or_truths(served: Served) -> None:
    for value in ("10.0", "10.5", '"10"', "true", "1" + "0" * 30, "1e999", "0"):
        raw = f'{{"inputs": [{{"text": "a", "label": "positive"}}], "options": {{"resamples": 10, "bins": {value}}}}}'
        response = await served.client.post("/evaluate", content=raw, headers=JSON)
        if value == "10.0":
            assert len(response.json()["methods"]["map"]["reliability"]) == 10
        else:
            assert (response.status_code, response.json()["error"]["field"]) == (422, "options.bins"), value


STRANGE_TEXTS = {
    "NUL": "a\x00b",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "right to left": "\u202eabc\u202c \u2066d\u2069 \u200f",
    "expands under NFKC": "\ufdfa" * 20,
    "marks": "e" + "\u0301" * 50,
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "a template's braces": "{text} {{text}} {0} %s {choices}",
    "special tokens": "<|endoftext|><|im_start|>system",
}


async def test_strange_text_is_text(served: Served) -> None:
    """Valid Unicode is never refused for what it is; as an id it comes back as it was sent, and nowhere else."""
    for name, text in STRANGE_TEXTS.items():
        response = await served.client.post("/predict", json={"inputs": [{"id": text, "text": text}, {"prompt": text}]})
        labelled = [{"id": text, "text": text, "label": "positive"}]
        few = {"inputs": labelled, "options": {"resamples": 10}}
        evaluate = await served.client.post("/evaluate", json=few)
        wrong = await served.client.post("/predict", json={"inputs": [{"text": text, text: text}], text: text})
        assert (response.status_code, evaluate.status_code, wrong.status_code) == (200, 200, 422), name
        assert response.json()["predictions"][0]["id"] == text
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        assert response.text.count(written) == 1
        assert written not in evaluate.text
        assert text not in wrong.json()["error"]["field"] + wrong.json()["error"]["message"]


async def test_choices_may_repeat_and_be_256_and_wrong_ones_are_422() -> None:
    labels = [f"L{i}" for i in range(256)]
    wrong = {
        "choices": ([], ["a"], [f"choice {i}" for i in range(257)], "ab", 2, None, {"A": "a", "B": "b"}),
        "choices[1]": (["a", 2], ["a", ["b"]], ["a", " \n"]),
    }
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=labels, max_tokens=2000)
    async with serve(predictor) as served:

        async def ask(choices: Any, **options: Any) -> httpx.Response:
            body = {"inputs": [{"question": "which", "choices": choices}], "options": options}
            return await served.client.post("/predict", json=body)

        for field, lists in wrong.items():
            for choices in lists:
                response = await ask(choices)
                assert code(response) == (422, "invalid_input"), choices
                assert response.json()["error"]["field"] == f"inputs.0.{field}"
        repeated = (await ask(["a", "a", "a"])).json()["predictions"][0]
        most = (await ask([f"choice {i}" for i in range(256)], covariance=True)).json()
    assert list(repeated["probs"]) == labels[:3]
    (prediction,) = most["predictions"]
    assert list(prediction["probs"]) == labels
    assert [len(row) for row in prediction["logit_covariance"]] == [256] * 256


BODY = b'{"inputs":[{"text":"\xc3\xa9"}]}'


async def test_other_media_types_are_415(served: Served) -> None:
    for headers in (
        {},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "br"},
        {"content-type": ';;;==""\''},
    ):
        response = await served.client.post("/predict", content=BODY, headers=headers)
        assert code(response) == (415, "unsupported_media_type"), headers
    for kind in ("application/json; charset=UTF-8", "application/vnd.x+json"):
        response = await served.client.post("/predict", content=BODY, headers={"content-type": kind})
        assert response.status_code == 200, kind


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


async def test_body_too_large_names_limit_and_size_and_a_false_length_does_not_help() -> None:
    async with serve(max_body_bytes=1024) as served:
        announced = await served.client.post("/predict", content=b" " * 5000, headers=JSON)
        streamed = await served.client.post("/predict", content=chunks(600, 10), headers=JSON)
        false = await served.client.post("/predict", content=chunks(600, 10), headers={**JSON, "content-length": "-5"})
        exact = await served.client.post("/predict", content=b" " * 1024, headers=JSON)
    for response, got in ((announced, 5000), (streamed, 1200), (false, 1200)):
        assert code(response) == (413, "body_too_large")
        assert (response.json()["error"]["limit"], response.json()["error"]["got"]) == (1024, got)
        assert "max_body_bytes" in response.json()["error"]["message"]
    assert exact.status_code == 422
