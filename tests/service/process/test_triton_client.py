"""Triton's own HTTP client against a real server process: its defaults, which are bytes both ways."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import Process, fake_artifacts, fake_server

from service.security.keys_file import Key, digest, new_token, write_keys

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent's, of its own modules
    import tritonclient.http as triton
    import tritonclient.http.aio as asynchronous

TEXTS = ["review 5000", "größer 90000"]
PROBS = [[0.05, 0.95], [0.9, 0.1]]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    root = fake_artifacts(tmp_path_factory.mktemp("served"), "fake", "choices")
    with fake_server(root, "--max-inputs", "4", FAKE_CHOICES="choices") as process, process.client():
        yield process


def address_of(process: Process) -> str:
    return str(process.event("listening")["address"]).removeprefix("http://")


@pytest.fixture
def client(process: Process) -> Iterator[Any]:
    client = triton.InferenceServerClient(address_of(process))
    yield client
    client.close()


def texts(*values: str, shape: list[int] | None = None, name: str = "text", binary: bool = True) -> Any:
    tensor = triton.InferInput(name, shape or [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, dtype=object).reshape(shape or [len(values)]), binary_data=binary)
    return tensor


def test_the_server_and_its_models_describe_themselves(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "laplora"
    metadata = client.get_model_metadata("fake")
    (version,) = metadata["versions"]
    assert client.get_model_metadata("fake", version) == metadata
    assert client.is_model_ready("fake")
    assert client.is_model_ready("fake", version)
    assert not client.is_model_ready("fake", "1")
    assert not client.is_model_ready("nobody")
    listed = [(one["name"], one["state"]) for one in client.get_model_repository_index()]
    assert listed[0] == ("fake", "READY")
    assert ("choices", "UNAVAILABLE") in listed


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_by_default_every_output_comes_as_bytes(binary_in: bool, shape: list[int], client: Any) -> None:
    result = client.infer("fake", [texts(*TEXTS, shape=shape, binary=binary_in)], request_id="42")
    assert result.get_response()["id"] == "42"
    assert result.as_numpy("probs") == pytest.approx(np.array(PROBS))
    assert result.as_numpy("probs").dtype == np.float64
    assert result.as_numpy("label").tolist() == [b"positive"] * 2
    assert result.as_numpy("epistemic") == pytest.approx([0.1, 0.1])
    assert result.as_numpy("prediction_set").tolist() == [[True, False]] * 2
    assert result.as_numpy("tokens").dtype == np.int64
    assert result.as_numpy("flags").tolist() == [b"", b""]
    for output in result.get_response()["outputs"]:
        assert "data" not in output
        assert result.as_numpy(output["name"]).shape == tuple(output["shape"])


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_are_selected(binary: bool, client: Any) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logit_covariance", "decision")]
    (version,) = client.get_model_metadata("fake")["versions"]
    result = client.infer("fake", [texts("a")], model_version=version, outputs=wanted, parameters={"target_risk": 0.2})
    assert [output["name"] for output in result.get_response()["outputs"]] == ["logit_covariance", "decision"]
    assert result.as_numpy("logit_covariance").shape == (1, 2, 2)
    assert result.as_numpy("decision").tolist() == [b"accept" if binary else "accept"]
    assert result.get_response()["parameters"]["target_risk"] == 0.2


def test_requests_that_are_under_way_at_once_keep_their_answers(process: Process) -> None:
    """``async_infer``: several connections, answers taken in another order than they were asked in.

    This client gives a connection back once its answer is taken, so each request needs one of its own.
    """
    client = triton.InferenceServerClient(address_of(process), concurrency=13)
    asked = {
        str(n): client.async_infer("fake", [texts(f"review {1000 * n}", "b 90000")], request_id=str(n))
        for n in range(12)
    }
    refused = client.async_infer("nobody", [texts("a")])
    for name, handle in reversed(asked.items()):
        result = handle.get_result()
        assert result.get_response()["id"] == name
        assert result.as_numpy("probs")[:, 0] == pytest.approx([int(name) / 100, 0.9])
    with pytest.raises(triton._utils.InferenceServerException) as error:
        refused.get_result()
    assert error.value.status() == "404"
    client.close()


def test_the_client_for_asyncio_asks_the_same(process: Process) -> None:
    async def ask() -> None:
        async with asynchronous.InferenceServerClient(address_of(process)) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("fake"))["name"] == "fake"
            results = await asyncio.gather(
                *(client.infer("fake", [texts(f"review {1000 * n}")], request_id=str(n)) for n in range(12))
            )
            for number, result in enumerate(results):
                assert result.get_response()["id"] == str(number)
                assert result.as_numpy("probs")[0, 0] == pytest.approx(number / 100)
            with pytest.raises(triton._utils.InferenceServerException) as refused:
                await client.infer("fake", [texts("")])
            assert refused.value.status() == "422"
            assert "text" in refused.value.message()

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("inputs", "named", "status", "said"),
    [
        ([texts("a")], {"model_name": "nobody"}, "404", "artifact"),
        ([texts("a")], {"model_version": "1"}, "409", "version"),
        ([texts(*"abcde")], {}, "413", "max_inputs"),
        ([texts("")], {}, "422", "text"),
        ([texts("a", name="other")], {}, "422", "takes the fields"),
        ([texts("a", "b", shape=[1, 2])], {}, "422", "several texts"),
        ([texts("a")], {"outputs": [triton.InferRequestedOutput("nothing")]}, "422", "no output"),
        ([texts("a")], {"outputs": [triton.InferRequestedOutput("probs", class_count=2)]}, "422", "not supported"),
        ([texts("a")], {"sequence_id": 7}, "422", "not supported"),
        ([texts("a")], {"request_compression_algorithm": "gzip"}, "415", "compressed"),
    ],
)
def test_refusals_are_the_clients_own_exceptions(
    inputs: list[Any], named: dict[str, Any], status: str, said: str, client: Any
) -> None:
    with pytest.raises(triton._utils.InferenceServerException) as refused:
        client.infer(**{"model_name": "fake", "inputs": inputs, **named})
    assert refused.value.status() == status
    assert said in refused.value.message()


def test_keys_are_asked_for(tmp_path: Path) -> None:
    keys, token = tmp_path / "keys.json", new_token()
    write_keys(keys, [Key(id="a", sha256=digest(token), scopes=("predict",))])
    root = fake_artifacts(tmp_path)
    with fake_server(root, "--keys", str(keys), "--auth", "keys") as process, process.client():
        client = triton.InferenceServerClient(address_of(process))
        assert client.is_server_ready()
        bearer = {"authorization": f"Bearer {token}"}
        with pytest.raises(triton._utils.InferenceServerException, match="API key"):
            client.infer("fake", [texts("a")])
        assert client.infer("fake", [texts("a")], headers=bearer).as_numpy("probs").shape == (1, 2)
        assert client.get_model_metadata("fake", headers=bearer)["name"] == "fake"
        client.close()
