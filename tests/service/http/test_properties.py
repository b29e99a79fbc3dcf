"""No answer depends on what shares its batch: property tests on three real tiny artifacts, served at once.

The device is held until all requests of an example wait, so that their rows are batched with each other, and every
answer is compared with that of the same input sent alone.

Tolerance: matrix products of another shape add up a few hundred float32 terms in another order. Of 57,000 numbers the
furthest was off by 8e-6 of its value, or by 5e-7 near zero; ten times as much is allowed. Rows mixed up differ by 1e-3.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from serving import queued_plans, settings, started
from tiny_runs import FinishedRun, choices_config, finish

from service.app import create_app

RELATIVE, ABSOLUTE = 1e-4, 5e-6

#: Texts, questions and choices, of a pool small enough that most answers alone are computed once.
WORDS = ("the", "plot", "dull", "lovely", "of", "it", "never", "superb", "and", "映画", "moving", "a", "12", "!")
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=24).map(" ".join)
text_inputs = st.one_of(
    st.fixed_dictionaries({"text": texts | st.text(min_size=1, max_size=12).filter(lambda t: t.strip() != "")}),
    st.fixed_dictionaries({"prompt": texts}),
)
choice_inputs = st.fixed_dictionaries(
    {
        "question": texts,
        "choices": st.lists(st.sampled_from(("good", "bad", "neither", "both")), min_size=2, max_size=3, unique=True),
    }
)
ARTIFACTS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "tiny-sentiment": (text_inputs, [{}, {"predictive": "map"}, {"covariance": True}]),
    "tiny-mixture": (text_inputs, [{}, *({"predictive": name} for name in ("temperature", "conditioned"))]),
    "tiny-choices-float32": (
        choice_inputs,
        [{}, {"predictive": "map"}, {"target_risk": 0.2}],
    ),
}


class Company:
    """The server, a client of it, and the answers of inputs that were sent alone."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient, portal: BlockingPortal) -> None:
        self.app, self.client, self.portal = app, client, portal
        self.alone: dict[str, dict[str, Any]] = {}

    def of_one(self, artifact: str, item: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one input, sent when nothing else is."""
        key = json.dumps([artifact, item, options], sort_keys=True)
        if key not in self.alone:
            body = {"inputs": [item], "artifact": artifact, "options": options}
            (answer,) = self.portal.call(self._together, [body])[0]
            self.alone[key] = answer
        return self.alone[key]

    def together(self, bodies: list[dict[str, Any]], token_budget: int) -> list[list[dict[str, Any]]]:
        """Return the predictions of requests whose rows all wait before the first one is scored."""
        device = self.app.state.backend.device
        usual, device.token_budget = device.token_budget, token_budget
        try:
            return self.portal.call(self._together, bodies)
        finally:
            device.token_budget = usual

    async def _together(self, bodies: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        released = threading.Event()
        self.app.state.backend.device.call(released.wait)
        asked = [asyncio.ensure_future(self.client.post("/predict", json=body)) for body in bodies]
        try:
            while queued_plans(self.app) < len(bodies) and not any(task.done() for task in asked):
                await asyncio.sleep(0.001)
        finally:
            released.set()
        responses = await asyncio.gather(*asked)
        for response in responses:
            assert response.status_code == 200, response.text
        answers = [response.json()["predictions"] for response in responses]
        # Each prediction has an id of its own, by which it can be labelled later.
        ids = [prediction.pop("prediction_id") for predictions in answers for prediction in predictions]
        assert len(set(ids)) == len(ids)
        return answers


@pytest.fixture(scope="module")
def company(
    sentiment_run: FinishedRun,
    mixture_run: FinishedRun,
    tiny_base_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Company]:
    root = tmp_path_factory.mktemp("root")
    config = choices_config(tmp_path_factory.mktemp("choices32"), tiny_base_folder)
    sections = yaml.safe_load(config.read_text(encoding="utf-8"))
    sections["name"] = "tiny-choices-float32"
    sections["base"] |= {"quantization": "none", "dtype": "float32"}
    sections["adapter"]["save_dtype"] = "float32"
    config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    for run in (sentiment_run, mixture_run, finish(config, tiny_base_folder)):
        shutil.copytree(run.artifact, root / run.artifact.name)
    first, *others = ARTIFACTS
    app = create_app(settings(artifact=first, also_load=",".join(others), artifacts_root=root, device="cpu"))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(started(app)) as client:
        yield Company(app, client, portal)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what an answer holds, by its path in it."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}.{name}")
    else:
        yield path, value


def assert_same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare two answers: names exactly, numbers within the tolerance."""
    for (path, value), (other_path, wanted) in zip(leaves(answer), leaves(expected), strict=True):
        assert path == other_path
        close = pytest.approx(wanted, rel=RELATIVE, abs=ABSOLUTE) if isinstance(wanted, float) else wanted
        assert value == close, path


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    artifact = draw(st.sampled_from(sorted(ARTIFACTS)))
    inputs, options = ARTIFACTS[artifact]
    items = draw(st.lists(inputs, min_size=1, max_size=6))
    return {
        "artifact": artifact,
        "inputs": [{"id": f"{i}", **item} for i, item in enumerate(items)],
        "options": {"truncate": True, **draw(st.sampled_from(options))},
    }


#: The same examples each time, and none is shrunk.
ALIKE: dict[str, Any] = {"derandomize": True, "database": None, "phases": [Phase.generate]}


@hypothesis_settings(max_examples=40, suppress_health_check=list(HealthCheck), **ALIKE)
@given(bodies=st.lists(requests(), min_size=1, max_size=5), token_budget=st.sampled_from((1, 40, 120, 512, 4096)))
def test_an_answer_does_not_hang_on_its_company(
    company: Company, bodies: list[dict[str, Any]], token_budget: int
) -> None:
    """At any place of any batch, with any padding, beside rows of other requests, options and artifacts."""
    for body, answers in zip(bodies, company.together(bodies, token_budget), strict=True):
        assert [answer.pop("id") for answer in answers] == [item["id"] for item in body["inputs"]]
        for item, answer in zip(body["inputs"], answers, strict=True):
            bare = {name: value for name, value in item.items() if name != "id"}
            assert_same(answer, company.of_one(body["artifact"], bare, body["options"]))
