"""The Open Inference Protocol over HTTP: tensors as JSON and as bytes, and every way of being wrong."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, serve

from laplora.prompts.templates import TEMPLATES
from service.http.protocols.open_inference import OUTPUTS

pytestmark = pytest.mark.anyio

INFER = "/v2/models/fake/infer"
HEADER = "inference-header-content-length"


def tensor(*texts: str, **more: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **more}


def packed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


async def infer(served: Served, *inputs: dict[str, Any], path: str = INFER, **body: Any) -> httpx.Response:
    return await served.client.post(path, json={"inputs": list(inputs), **body})


async def infer_bytes(served: Served, rest: bytes, *inputs: dict[str, Any], header: str = "", **body: Any) -> Any:
    head = json.dumps({"inputs": list(inputs), **body}).encode()
    return await served.client.post(INFER, content=head + rest, headers={HEADER: header or str(len(head))})


def outputs(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


async def test_every_output_says_what_predict_says(served: Served) -> None:
    native = (await served.predict("fine 7", "fine 90000")).json()["predictions"]
    response = await infer(served, tensor("fine 7", "fine 90000"), id="42")
    body = response.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("42", "fake", "sha256:fake")
    assert body["parameters"] == {"predictive": "laplace", "target_risk": 0.05}
    found = outputs(response)
    assert set(found) == set(OUTPUTS) - {"logit_covariance", "labels"}
    for name in ("probs", "map_probs", "probs_std"):
        assert found[name] == {
            "name": name,
            "datatype": "FP64",
            "shape": [2, 2],
            "data": [value for one in native for value in one[name].values()],
        }
    for name in ("label", "decision", "answered_by", "score", "familiarity", "tokens", "truncated"):
        assert found[name]["data"] == [one[name] for one in native]
        assert found[name]["shape"] == [2]
    for name in ("total", "aleatoric", "epistemic"):
        assert found[name]["data"] == [one["uncertainty"][name] for one in native]
    assert found["prediction_set"]["data"] == [True, False, True, False]
    assert found["flags"]["data"] == ["", ""]


async def test_outputs_are_selected_in_the_order_asked_for(served: Served) -> None:
    wanted = [{"name": "logit_covariance"}, {"name": "label"}]
    found = outputs(await infer(served, tensor("fine"), outputs=wanted))
    assert list(found) == ["logit_covariance", "label"]
    assert found["logit_covariance"]["shape"] == [1, 2, 2]
    assert found["logit_covariance"]["data"] == [0.1] * 4


async def test_bytes_in_and_out(served: Served) -> None:
    text = "grün 7".encode()
    plain = outputs(await infer(served, tensor("grün 7")))
    sent = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(text) + 4}}
    wanted = [
        {"name": name, "parameters": {"binary_data": True}} for name in ("probs", "label", "tokens", "prediction_set")
    ] + [{"name": "epistemic"}]
    response = await infer_bytes(served, packed(text), sent, outputs=wanted, parameters={"binary_data_output": False})
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers[HEADER])
    head, rest = json.loads(response.content[:size]), response.content[size:]
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in head["outputs"]]
    assert sizes == [16, 4 + len("positive"), 8, 2, None]
    assert list(struct.unpack("<2d", rest[:16])) == plain["probs"]["data"]
    assert rest[16:28] == packed(b"positive")
    assert struct.unpack("<q??", rest[28:]) == (plain["tokens"]["data"][0], True, False)
    assert head["outputs"][-1]["data"] == [0.1]


async def test_parameters_are_the_options_of_predict(served: Served) -> None:
    response = await infer(
        served, tensor("fine"), parameters={"predictive": "map", "target_risk": 0.2, "timeout": 60e6}
    )
    assert response.json()["parameters"] == {"predictive": "map", "target_risk": 0.2}
    # MAP has no posterior: what it does not have is not there.
    assert set(outputs(response)) == set(OUTPUTS) - {
        *("logit_covariance", "labels", "probs_std", "logit_variance", "total", "aleatoric", "epistemic"),
    }
    absent = await infer(served, tensor("a"), parameters={"predictive": "map"}, outputs=[{"name": "probs_std"}])
    assert (absent.status_code, list(absent.json())) == (422, ["error"])
    late = await infer(served, tensor("a"), parameters={"timeout": 0.001})
    assert late.status_code == 504


async def test_choices_are_a_row_of_texts_each() -> None:
    async with serve(FakePredictor(template=TEMPLATES["multiple_choice"], labels="ABCD")) as served:
        question = {**tensor("which 7?", "which 8?"), "name": "question"}
        for data in (["a", "b", "c", "d", "e", "f"], [["a", "b", "c"], ["d", "e", "f"]]):
            choices = {"name": "choices", "shape": [2, 3], "datatype": "BYTES", "data": data}
            found = outputs(await infer(served, question, choices, parameters={"order_average": "reverse"}))
            assert found["probs"]["shape"] == [2, 3]
        model = (await served.client.get("/v2/models/fake")).json()
        assert {t["name"]: t["shape"] for t in model["inputs"]} == {"question": [-1], "choices": [-1, -1]}
        prompt = outputs(await infer(served, {**tensor("rendered"), "name": "prompt"}))
        assert prompt["probs"]["shape"] == [1, 4]


async def test_metadata_and_readiness_by_name_and_version(served: Served) -> None:
    get = served.client.get
    server = (await get("/v2")).json()
    assert (server["name"], server["extensions"]) == ("laplora", ["binary_tensor_data", "parameters"])
    assert (await get("/v2/health/live")).json() == {"live": True}
    assert (await get("/v2/health/ready")).json() == {"ready": True}
    model = (await get("/v2/models/fake")).json()
    assert (model["name"], model["versions"], model["platform"]) == ("fake", ["sha256:fake"], "laplora")
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {"name": "probs", "datatype": "FP64", "shape": [-1, 2]} in model["outputs"]
    assert (await get("/v2/models/fake/ready")).json() == {"name": "fake", "ready": True}
    versioned = "/v2/models/fake/versions/sha256:fake"
    assert (await get(versioned)).json() == model
    assert (await get(f"{versioned}/ready")).json() == {"name": "fake", "ready": True}
    assert outputs(await infer(served, tensor("a"), path=f"{versioned}/infer"))
    for suffix in ("", "/ready"):
        for path, status in (("/v2/models/nobody", 404), ("/v2/models/fake/versions/1", 409)):
            answer = await get(path + suffix)
            assert (answer.status_code, list(answer.json())) == (status, ["error"])
    other = await infer(served, tensor("a"), path="/v2/models/fake/versions/1/infer")
    assert (other.status_code, "sha256:fake" in other.json()["error"]) == (409, True)
    assert (await infer(served, tensor("a"), path="/v2/models/nobody/infer")).status_code == 404


async def test_the_repository_lists_what_there_is(served: Served) -> None:
    ready = {"name": "fake", "version": "sha256:fake", "state": "READY", "reason": ""}
    for sent in ({"content": b""}, {"json": {}}, {"json": {"ready": True}}):
        answer = await served.client.post("/v2/repository/index", **sent)
        assert answer.json() == [ready]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shape": [10**12]}, "more inputs than max_inputs is, 256"),
        ({"shape": [10**99]}, "more inputs than max_inputs is, 256"),
        ({"shape": [10**12, 0], "data": []}, "more inputs than max_inputs is, 256"),
        ({"shape": [1, 10**12]}, "32768 entries are the most"),
        ({"shape": [1, 10**99, 10**99]}, "32768 entries are the most"),
        ({"shape": [1, 0], "data": []}, "one entry at least"),
        ({"shape": [0], "data": []}, "one entry at least"),
        ({"shape": [-1]}, "one entry at least"),
        ({"shape": [2]}, "has 1 entries"),
        ({"shape": [1], "data": ["a", "b"]}, "has 2 entries"),
        ({"shape": [1, 2], "data": ["a", "b"]}, "several texts"),
        ({"shape": []}, "at least 1 item"),
        ({"shape": [1] * 5}, "at most 4 items"),
        ({"shape": [1.5]}, "integer"),
        ({"shape": [True]}, "integer"),
        ({"shape": None}, "list"),
        ({"data": [["a"]]}, "nested deeper"),
        ({"data": [[[[["a"]]]]]}, "nested deeper"),
        ({"data": [1]}, "no text"),
        ({"data": [None]}, "no text"),
        ({"data": "a"}, "has no data"),
        ({"data": {"a": 1}}, "has no data"),
        ({"data": None}, "has no data"),
        ({"datatype": "FP32"}, "BYTES"),
        ({"parameters": {"shared_memory_region": "r"}}, "not supported"),
        ({"parameters": {"binary_data_size": 1}}, "binary_data_size"),
        ({"name": "txt"}, "takes the fields ['text']"),
        ({"name": "SECRET words", "shape": [2]}, "input tensor ?"),
    ],
)
async def test_wrong_tensors_are_refused(wrong: dict[str, Any], said: str, served: Served) -> None:
    response = await infer(served, {**tensor("a"), **wrong})
    assert response.status_code in (413, 422)
    assert list(response.json()) == ["error"]
    assert said in response.json()["error"]
    assert "SECRET" not in response.text
    assert served.predictor.batches == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": []}, "at least 1 item"),
        ({}, "required"),
        ({"inputs": [tensor("a"), tensor("b")]}, "twice"),
        ({"inputs": [tensor("a"), {**tensor("a", "b"), "name": "other"}]}, "different numbers"),
        ({"inputs": [tensor("a")] * 65}, "at most 64"),
        ({"inputs": [tensor("a"), {**tensor("SECRET" * 50), "name": "id"}]}, "inputs.0.id"),
        ({"inputs": [tensor("a")], "outputs": [{"name": "SECRET"}]}, "no output"),
        ({"inputs": [tensor("a")], "outputs": [{"name": "probs"}, {"name": "probs"}]}, "twice"),
        ({"inputs": [tensor("a")], "outputs": [{"name": "probs", "parameters": {"classification": 1}}]}, "supported"),
        ({"inputs": [tensor("a")], "parameters": {"sequence_id": 1}}, "not supported"),
        ({"inputs": [tensor("a")], "parameters": {"target_risk": 7}}, "parameters.target_risk"),
        ({"inputs": [tensor("a")], "parameters": {"target_risk": "x"}}, "parameters.target_risk"),
        ({"inputs": [tensor("a")], "parameters": {"timeout": "x"}}, "parameters.timeout"),
        ({"inputs": [tensor("a")], "parameters": {"predictive": "none"}}, "no predictive of that name"),
        ({"inputs": [tensor("a")], "parameters": {"predictive": ["map"]}}, "parameters.predictive"),
        ({"inputs": [tensor("a")], "parameters": {"order_average": True}}, "choices"),
    ],
)
async def test_wrong_requests_are_refused(body: dict[str, Any], said: str, served: Served) -> None:
    response = await served.client.post(INFER, json=body)
    assert (response.status_code, list(response.json())) == (422, ["error"])
    assert said in response.json()["error"]
    assert "SECRET" not in response.text


def binary(size: Any, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": "text",
        "shape": shape or [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": size},
        **more,
    }


LIES: list[tuple[bytes, dict[str, Any], str, str]] = [
    (packed(b"a"), binary(5), "999999", "the body has"),
    (packed(b"a"), binary(5), "9" * 30, "no number of bytes"),
    (packed(b"a"), binary(5), "-1", "no number of bytes"),
    (packed(b"a"), binary(5), "١", "no number of bytes"),
    (packed(b"a"), binary(5), "10", "not valid JSON"),
    (packed(b"a"), binary(5), "0", "come behind the JSON object"),
    (packed(b"a"), binary(4), "", "add up to 4"),
    (packed(b"a"), binary(6), "", "no number of bytes"),
    (packed(b"a"), binary(-1), "", "no number of bytes"),
    (packed(b"a"), binary(10**18), "", "no number of bytes"),
    (packed(b"a"), binary("5"), "", "no number of bytes"),
    (packed(b"a"), binary(True), "", "no number of bytes"),
    (packed(b"a"), binary(5, data=["a"]), "", "both data and binary_data_size"),
    (packed(b"a") + b"x", binary(5), "", "add up to 5"),
    (b"", binary(0), "", "has 0 entries"),
    (packed(b"a", b"b"), binary(10), "", "more entries"),
    (packed(b"a"), binary(5, [2]), "", "has 1 entries"),
    (b"\xff\xff\xff\xffa", binary(5), "", "longer than what came"),
    (b"\x01\x00", binary(2), "", "longer than what came"),
    (packed(b"\xff"), binary(5), "", "not UTF-8"),
    (packed(b"\xed\xa0\x80"), binary(7), "", "not UTF-8"),
    (packed(*[b""] * 200_000), binary(800_000, [1, 200_000]), "", "are the most"),
    (packed(*[b""] * 200_000), binary(800_000, [2]), "", "more entries"),
]


@pytest.mark.parametrize(("rest", "sent", "header", "said"), LIES)
async def test_lies_about_bytes_are_refused(
    rest: bytes, sent: dict[str, Any], header: str, said: str, served: Served
) -> None:
    head = json.dumps({"inputs": [sent]}).encode()
    headers = {HEADER: (header or str(len(head))).encode()}
    response = await served.client.post(INFER, content=head + rest, headers=headers)
    assert response.status_code in (413, 422)
    assert list(response.json()) == ["error"]
    assert said in response.json()["error"]
    assert served.predictor.batches == []


async def test_tensors_together_have_no_more_entries_than_a_body(served: Served) -> None:
    texts = packed(*[b""] * 20_000)
    sent = [binary(len(texts), [1, 20_000], name=name) for name in ("choices", "other")]
    response = await infer_bytes(served, texts * 2, *sent)
    assert (response.status_code, list(response.json())) == (413, ["error"])
    assert "12768 entries are the most" in response.json()["error"]


async def test_media_types_compression_and_bodies_too_large_are_refused() -> None:
    async with serve(max_body_bytes=2048, max_inputs=2, max_queue_rows=8) as served:
        for headers, status in (
            ({"content-type": "text/plain"}, 415),
            ({"content-type": "application/x-www-form-urlencoded"}, 415),
            ({"content-encoding": "gzip"}, 415),
        ):
            answer = await served.client.post(INFER, content=b"{}", headers=headers)
            assert (answer.status_code, list(answer.json())) == (status, ["error"])
        large = await served.client.post(INFER, content=b" " * 4096)
        assert (large.status_code, list(large.json())) == (413, ["error"])
        rows = await infer(served, tensor("a", "b", "c"))
        assert rows.status_code == 413
        assert "max_inputs is, 2" in rows.json()["error"]
        # A tensor a field is no input each.
        assert (await infer(served, *[{**tensor("a"), "name": name} for name in "abc"])).status_code == 422


async def test_an_answer_without_a_number_is_an_error_and_not_nan(served: Served) -> None:
    served.predictor.nan = True
    response = await infer(served, tensor("a"), parameters={"binary_data_output": True})
    assert (response.status_code, list(response.json())) == (422, ["error"])


async def test_unknown_paths_and_methods_have_the_protocols_shape(served: Served) -> None:
    for answer, status in (
        (await served.client.get("/v2/nothing"), 404),
        (await served.client.get(INFER), 405),
        (await served.client.post("/v2/models/a/b/infer", json={}), 404),
    ):
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
