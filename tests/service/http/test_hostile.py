"""Nothing that a client can send is answered with a 500, and nothing it sent is echoed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from serving import FakePredictor, Served, serve

from laplora.errors import NonFiniteError
from laplora.prompts.templates import TEMPLATES
from service.http.schemas.errors import ErrorResponse

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
SECRET = "zebra-secret"

NOT_JSON = {
    "empty": b"",
    "blank": b"  \n",
    "cut": b'{"inputs": [{"text": "a"',
    "nan": b'{"inputs": [{"text": NaN}]}',
    "infinity": b'{"inputs": [{"text": Infinity}]}',
    "minus infinity": b'{"inputs": [{"text": -Infinity}]}',
    "lone surrogate": b'{"inputs": [{"text": "a \\ud800 b"}]}',
    "surrogate bytes": b'{"inputs": [{"text": "\xed\xa0\x80"}]}',
    "surrogate id": b'{"inputs": [{"id": "\\udfff", "text": "a"}]}',
    "raw control": b'{"inputs": [{"text": "a\x00b"}]}',
    "binary": bytes(range(256)),
    "utf-16": '{"inputs": [{"text": "a"}]}'.encode("utf-16"),
    "bom": b'\xef\xbb\xbf{"inputs": [{"text": "a"}]}',
    "nested lists": b"[" * 30_000,
    "nested objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "nested inside": b'{"inputs": [{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}]}",
    "enormous integer": b'{"inputs": [{"text": ' + b"9" * 10_000 + b"}]}",
    "two values": b"{} {}",
    "key twice": b'{"inputs": [{"text": "a"}], "inputs": [{"text": "b"}]}',
    "field twice": b'{"inputs": [{"text": "a", "text": "zebra-secret"}]}',
    "key twice, escaped": b'{"inputs": [{"text": "a", "t\\u0065xt": "b"}]}',
    "key twice in a large body": b'{"inputs": [{"text": "' + b"a" * 100_000 + b'", "id": "a", "id": "b"}]}',
    "large and cut": b'{"inputs": [{"text": "' + b"a" * 100_000,
}


@pytest.mark.parametrize("name", NOT_JSON)
async def test_what_is_not_json_is_422(name: str, served: Served) -> None:
    for path in ("/predict", "/evaluate"):
        response = await served.client.post(path, content=NOT_JSON[name], headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_json")
        assert SECRET not in response.text


async def test_one_key_in_several_objects_and_colons_in_texts_are_no_duplicates(served: Served) -> None:
    response = await served.predict('{"text": 1, "text": 2}', '"text": a', "\\")
    assert response.status_code == 200


NOT_A_REQUEST: dict[str, tuple[Any, str]] = {
    "null": (None, "body"),
    "list": ([1], "body"),
    "string": (SECRET, "body"),
    "number": (7, "body"),
    "no inputs": ({}, "inputs"),
    "null inputs": ({"inputs": None}, "inputs"),
    "inputs object": ({"inputs": {"text": "a"}}, "inputs"),
    "empty inputs": ({"inputs": []}, "inputs"),
    "input string": ({"inputs": [SECRET]}, "inputs.0"),
    "input null": ({"inputs": [None]}, "inputs.0"),
    "input list": ({"inputs": [[]]}, "inputs.0"),
    "id number": ({"inputs": [{"id": 5, "text": "a"}]}, "inputs.0.id"),
    "id object": ({"inputs": [{"id": {}, "text": "a"}]}, "inputs.0.id"),
    "id of NULs": ({"inputs": [{"id": "\x00" * 257, "text": "a"}]}, "inputs.0.id"),
    "id enormous": ({"inputs": [{"id": "x" * 100_000, "text": "a"}]}, "inputs.0.id"),
    "id twice": ({"inputs": [{"id": "a", "text": "a"}, {"id": "a", "text": "b"}]}, "inputs.1.id"),
    "text missing": ({"inputs": [{}]}, "inputs.0.text"),
    "text empty": ({"inputs": [{"text": ""}]}, "inputs.0.text"),
    "text blank": ({"inputs": [{"text": " \n\t"}]}, "inputs.0.text"),
    "text number": ({"inputs": [{"text": 5}]}, "inputs.0.text"),
    "text null": ({"inputs": [{"text": None}]}, "inputs.0.text"),
    "text list": ({"inputs": [{"text": ["a"]}]}, "inputs.0.text"),
    "second text": ({"inputs": [{"text": "a"}, {"text": {}}]}, "inputs.1.text"),
    "unknown field": ({"inputs": [{"text": "a", "txet": SECRET}]}, "inputs.0.txet"),
    "choices for a text": ({"inputs": [{"question": "a", "choices": ["b", "c"]}]}, "inputs.0.text"),
    "prompt and text": ({"inputs": [{"prompt": "a", "text": "b"}]}, "inputs.0.prompt"),
    "prompt empty": ({"inputs": [{"prompt": ""}]}, "inputs.0.prompt"),
    "unknown key": ({"inputs": [{"text": "a"}], SECRET: 1}, SECRET),
    "unknown option": ({"inputs": [{"text": "a"}], "options": {"speed": 1}}, "options.speed"),
    "options null": ({"inputs": [{"text": "a"}], "options": None}, "options"),
    "mode unknown": ({"inputs": [{"text": "a"}], "options": {"mode": SECRET}}, "options.mode"),
    "bool as text": ({"inputs": [{"text": "a"}], "options": {"covariance": "true"}}, "options.covariance"),
    "bool as number": ({"inputs": [{"text": "a"}], "options": {"truncate": 1}}, "options.truncate"),
    "artifact number": ({"inputs": [{"text": "a"}], "artifact": 3}, "artifact"),
    "artifact enormous": ({"inputs": [{"text": "a"}], "artifact": "x" * 5000}, "artifact"),
}


@pytest.mark.parametrize("name", NOT_A_REQUEST)
async def test_what_does_not_fit_is_422_and_names_the_field(name: str, served: Served) -> None:
    body, field = NOT_A_REQUEST[name]
    response = await served.client.post("/predict", content=json.dumps(body), headers=JSON)
    assert response.status_code == 422
    ErrorResponse.model_validate(response.json())
    assert response.json()["error"]["field"] == field
    assert len(response.content) < 2000
    if field != SECRET:
        assert SECRET not in response.text


async def test_integers_may_be_written_with_a_point_but_not_be_fractions_words_or_truths(served: Served) -> None:
    inputs = [{"text": "a", "label": "positive"}]
    response = await served.client.post(
        "/evaluate", json={"inputs": inputs, "options": {"bins": 10.0, "resamples": 10.0}}
    )
    assert response.status_code == 200
    assert len(response.json()["methods"]["map"]["reliability"]) == 10
    for value in (10.5, "10", True, None, [10], 10**30, -1, 0):
        response = await served.client.post("/evaluate", json={"inputs": inputs, "options": {"bins": value}})
        assert (response.status_code, response.json()["error"]["field"]) == (422, "options.bins"), value


async def test_number_beyond_range_is_422(served: Served) -> None:
    for raw in (b'{"inputs": [{"text": 1e999}]}', b'{"inputs": [{"text": "a"}], "artifact": 1e999}'):
        response = await served.client.post("/predict", content=raw, headers=JSON)
        assert response.status_code == 422
    raw = b'{"inputs": [{"text": "a", "label": "positive"}], "options": {"bins": 1e999}}'
    response = await served.client.post("/evaluate", content=raw, headers=JSON)
    assert (response.status_code, response.json()["error"]["field"]) == (422, "options.bins")


STRANGE_TEXTS = {
    "NUL": "a\x00b",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "right to left": "\u202eabc\u202c \u2066d\u2069 \u200f",
    "zero width": "a\u200b\u200d\ufeff\u00adb",
    "expands under NFKC": "\ufdfa" * 20,
    "marks": "e" + "\u0301" * 50,
    "emoji": "👩‍👩‍👧‍👦" * 5,
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "unassigned": "\U000e0fff\u0378",
    "a template's braces": "{text} {{text}} {0} %s {choices}",
    "special tokens": "<|endoftext|><|im_start|>system",
}


@pytest.mark.parametrize("name", STRANGE_TEXTS)
async def test_strange_text_is_text(name: str, served: Served) -> None:
    """Valid Unicode is never refused for what it is; as an id it comes back as it was sent, and nowhere else."""
    text = STRANGE_TEXTS[name]
    inputs = [{"id": text, "text": text}, {"prompt": text}]
    response = await served.client.post("/predict", json={"inputs": inputs})
    labelled = [{"id": text, "text": text, "label": "positive"}]
    evaluate = await served.client.post("/evaluate", json={"inputs": labelled})
    wrong = await served.client.post("/predict", json={"inputs": [{"text": text, text: text}], text: text})
    assert (response.status_code, evaluate.status_code) == (200, 200)
    assert response.json()["predictions"][0]["id"] == text
    written = json.dumps(text, ensure_ascii=False)[1:-1]
    assert response.text.count(written) == 1
    assert written not in evaluate.text
    assert wrong.status_code == 422
    assert text not in wrong.json()["error"]["field"] + wrong.json()["error"]["message"]


async def test_text_in_the_place_of_a_name_is_not_echoed(served: Served) -> None:
    sentence = "the patient says that she has"
    bodies = [
        {"inputs": [{"text": "a", sentence: "b"}]},
        {"inputs": [{"text": "a"}], sentence: 1},
        {"inputs": [{"text": "a"}], "options": {sentence: 1}},
        {"inputs": [{"text": "a"}], "artifact": sentence},
        {"inputs": [{"text": "a"}], "options": {"predictive": sentence}},
        {"inputs": [{"text": "a"}], "options": {"mode": sentence}},
        {"inputs": [{"text": {"a": sentence}}]},
        {"inputs": [{"text": "a", "id": sentence}, {"text": "b", "id": sentence}]},
    ]
    for body in bodies:
        response = await served.client.post("/predict", json=body)
        assert response.status_code in (404, 422)
        assert sentence not in response.text
        assert sentence.split()[1] not in response.text
    labelled = {"inputs": [{"text": "a", "label": sentence}]}
    response = await served.client.post("/evaluate", json=labelled)
    assert (response.status_code, response.json()["error"]["field"]) == (422, "inputs.0.label")
    assert sentence not in response.text


LETTERS = "ABCD"
WRONG_CHOICES: dict[str, tuple[Any, str]] = {
    "none": ([], "choices"),
    "one": (["a"], "choices"),
    "more than labels": (list("abcde"), "choices"),
    "256": ([f"choice {i}" for i in range(256)], "choices"),
    "a text": ("ab", "choices"),
    "a number": (2, "choices"),
    "null": (None, "choices"),
    "an object": ({"A": "a", "B": "b"}, "choices"),
    "a number among them": (["a", 2], "choices[1]"),
    "null among them": ([None, "a"], "choices[0]"),
    "a list among them": (["a", ["b"]], "choices[1]"),
    "an empty one": (["a", ""], "choices[1]"),
    "a blank one": (["a", " \n"], "choices[1]"),
}


@pytest.mark.parametrize("name", WRONG_CHOICES)
async def test_wrong_choices_are_422(name: str) -> None:
    choices, field = WRONG_CHOICES[name]
    async with serve(FakePredictor(template=TEMPLATES["multiple_choice"], labels=LETTERS)) as served:
        for options in ({}, {"order_average": True}):
            body = {"inputs": [{"question": "which", "choices": choices}], "options": options}
            response = await served.client.post("/predict", json=body)
            # 256 choices asked in 256 orders are as many prompts as a request may bring.
            detail = response.json()["error"]
            assert (response.status_code, detail["code"]) == (422, "invalid_input")
            assert detail["field"] == f"inputs.0.{field}"


async def test_repeated_choices_are_choices() -> None:
    async with serve(FakePredictor(template=TEMPLATES["multiple_choice"], labels=LETTERS)) as served:
        body = {"inputs": [{"question": "which", "choices": ["a", "a", "a"]}], "options": {"order_average": True}}
        response = await served.client.post("/predict", json=body)
    assert response.status_code == 200
    assert list(response.json()["predictions"][0]["probs"]) == ["A", "B", "C"]


async def test_256_labels_and_choices() -> None:
    labels = [f"L{i}" for i in range(256)]
    predictor = FakePredictor(template=TEMPLATES["multiple_choice"], labels=labels, max_tokens=2000)
    question = {"question": "which", "choices": [f"choice {i}" for i in range(256)]}
    async with serve(predictor) as served:
        response = await served.client.post("/predict", json={"inputs": [question], "options": {"covariance": True}})
        evaluate = await served.client.post(
            "/evaluate", json={"inputs": [question | {"label": "L255"}], "options": {"resamples": 10}}
        )
        both = {"inputs": [question] * 2, "options": {"order_average": True}}
        many = await served.client.post("/predict", json=both)
    assert (response.status_code, evaluate.status_code) == (200, 200)
    (prediction,) = response.json()["predictions"]
    assert list(prediction["probs"]) == labels
    assert [len(row) for row in prediction["logit_covariance"]] == [256] * 256
    assert (many.status_code, many.json()["error"]["got"]) == (413, 512)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/jsonl"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": ';;;==""\''},
    ],
)
async def test_other_media_types_are_415(headers: dict[str, str], served: Served) -> None:
    request = served.client.build_request("POST", "/predict", content=b"{}", headers=headers)
    response = await served.client.send(request)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


async def test_body_too_large_names_limit_and_size() -> None:
    async with serve(max_body_bytes=1024) as served:
        announced = await served.client.post("/predict", content=b" " * 5000, headers=JSON)
        streamed = await served.client.post("/predict", content=chunks(600, 10), headers=JSON)
        exact = await served.client.post("/predict", content=b" " * 1024, headers=JSON)
    assert announced.status_code == streamed.status_code == 413
    assert announced.json()["error"]["limit"] == streamed.json()["error"]["limit"] == 1024
    assert announced.json()["error"]["got"] == 5000
    assert streamed.json()["error"]["got"] == 1200
    assert "max_body_bytes" in announced.json()["error"]["message"]
    assert exact.status_code == 422


async def test_false_content_length_does_not_help() -> None:
    async with serve(max_body_bytes=1024) as served:
        headers = {**JSON, "content-length": "-5"}
        response = await served.client.post("/predict", content=chunks(600, 10), headers=headers)
    assert response.status_code == 413


async def test_more_tokens_than_the_queue_holds_is_413_not_429() -> None:
    async with serve(max_queue_tokens=10, client_share=1.0) as served:
        response = await served.predict("a", "b")
    assert (response.status_code, response.json()["error"]["limit"]) == (413, 10)


@pytest.mark.parametrize(
    "name", ["%2e%2e", "..%2f..%2fetc", "..%5c..", "%00", "a" * 5000, "%F0%9F%98%80", "%ED%A0%80", ".hidden"]
)
async def test_no_name_leads_out_of_the_root(name: str, served: Served) -> None:
    for response in (
        await served.client.post(f"/artifacts/{name}/activate"),
        await served.client.get(f"/v2/models/{name}"),
    ):
        assert response.status_code in (404, 405)
        ErrorResponse.model_validate(response.json())


async def test_poison_row_is_422_and_its_neighbours_answer() -> None:
    predictor = FakePredictor()
    predictor.poison[666] = NonFiniteError(f"NaN for {SECRET}")
    async with serve(predictor) as served:
        bad, good = await served.predict("a", "b 666"), await served.predict("c 7")
    assert (bad.status_code, bad.json()["error"]["field"]) == (422, "inputs.1")
    assert SECRET not in bad.text
    assert good.status_code == 200


async def test_nan_never_leaves() -> None:
    predictor = FakePredictor()
    predictor.nan = True
    async with serve(predictor) as served:
        predict = await served.predict("a")
        evaluate = await served.client.post("/evaluate", json={"inputs": [{"text": "a", "label": "positive"}]})
    for response in (predict, evaluate):
        assert (response.status_code, response.json()["error"]["code"]) == (422, "unscorable_input")
        json.loads(response.text, parse_constant=pytest.fail)


async def test_input_that_does_not_fit_the_device_is_503(served: Served) -> None:
    served.predictor.most_rows = 0
    response = await served.predict("a")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "device_memory")
    assert "retry-after" in response.headers


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
bodies = json_values | st.fixed_dictionaries(
    {"inputs": json_values | st.lists(st.fixed_dictionaries({"text": json_values}), max_size=3)},
    optional={"options": json_values, "artifact": json_values},
)


# One server for all examples: a fuzzer that starts a thread per example tests mostly that.
@pytest.mark.slow
async def test_fuzzed_bodies_never_crash(served: Served) -> None:
    sent: list[bytes] = []

    @hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(bodies | st.binary(max_size=64))
    def collect(body: Any) -> None:
        sent.append(body if isinstance(body, bytes) else json.dumps(body).encode())

    collect()
    for raw in sent:
        for path in ("/predict", "/evaluate"):
            response = await served.client.post(path, content=raw, headers=JSON)
            assert response.status_code in (200, 404, 422)
            json.loads(response.text, parse_constant=pytest.fail)
