"""One request with inputs of every kind: the template's own fields, a question with choices, a rendered prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
from serving import FakePredictor, serve, settings, started
from tiny_runs import FinishedRun

from laplora.prompts.templates import TEMPLATES, render
from service.app import create_app

pytestmark = pytest.mark.anyio

LETTERS = tuple("ABCD")
#: By template, how an input of each kind is written for number i; the number ends up among its prompt's tokens.
KINDS: dict[str, list[Any]] = {
    "multiple_choice": [
        lambda i: {"question": f"number {i}", "choices": ["x", "y"]},
        lambda i: {"question": f"number {i}", "choices": ["x", "y", "z"]},
        lambda i: {"choices": ["w", "x", "y", "z"], "question": f"number {i}"},
        lambda i: {"prompt": f"rendered {i}"},
    ],
    "boolq": [
        lambda i: {"question": f"is it {i} now", "passage": "so it is"},
        lambda i: {"passage": f"it is {i} now", "question": "is it so"},
        lambda i: {"prompt": f"rendered {i}"},
    ],
    "sentiment": [lambda i: {"text": f"review {i}"}, lambda i: {"prompt": f"rendered {i}"}],
}


@pytest.mark.parametrize("name", KINDS)
async def test_kinds_mix_up_to_the_largest_request(name: str) -> None:
    draw = random.Random(5)
    numbers = draw.sample(range(100, 99_000), 256)
    inputs = [draw.choice(KINDS[name])(number) for number in numbers]
    ids = {i: f"id {i}" for i in draw.sample(range(256), 128)}
    sent = [{"id": ids[i], **item} if i in ids else item for i, item in enumerate(inputs)]
    async with serve(FakePredictor(template=TEMPLATES[name], labels=LETTERS)) as served:
        responses = [
            await served.client.post("/predict", json={"inputs": sent, "options": options})
            for options in ({"detail": "full"}, {"detail": "full", "predictive": "map"}, {"predictive": "temperature"})
        ]
        more = await served.client.post("/predict", json={"inputs": [*inputs, inputs[0]]})
    assert (more.status_code, more.json()["error"]["limit"], more.json()["error"]["got"]) == (413, 256, 257)
    for response in responses:
        assert response.status_code == 200, response.text
        answers = response.json()["predictions"]
        assert [round(answer["probs"]["A"] * 100_000) for answer in answers] == numbers
        assert [answer.get("id") for answer in answers] == [ids.get(i) for i in range(256)]
        for item, answer in zip(inputs, answers, strict=True):
            assert len(answer["probs"]) == len(item.get("choices", LETTERS))
            expected = item["choices"][LETTERS.index(answer["label"])] if "choices" in item else answer["label"]
            assert answer.get("label_text", expected) == expected


async def test_evaluate_mixes_kinds_too() -> None:
    inputs = [{**make(i + 100), "label": "B"} for i, make in enumerate(KINDS["multiple_choice"])]
    # The third choice of two is no label that this input can have.
    wrong = [*inputs[:3], {"question": "a", "choices": ["x", "y"], "label": "C"}]
    async with serve(FakePredictor(template=TEMPLATES["multiple_choice"], labels=LETTERS)) as served:
        measured = await served.client.post("/evaluate", json={"inputs": inputs, "options": {"resamples": 10}})
        refused = await served.client.post("/evaluate", json={"inputs": wrong})
    assert (measured.status_code, measured.json()["rows"]) == (200, 4)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "inputs.3.label")


async def test_on_a_real_model_an_input_is_its_prompt_whatever_it_came_with(choices_run: FinishedRun) -> None:
    """With one prompt a batch: the same prompt then has the same numbers."""
    inputs = [
        {"question": "Is a dull plot good?", "choices": ["good", "bad"]},
        {"question": "Is a moving plot good 映画 \u202e?", "choices": ["good", "bad", "neither of them"]},
        {"question": "NUL \x00?", "choices": ["\ufdfa", "same", "same"]},
    ]
    # A prompt stands for every label, as those questions do that have three choices.
    prompts = [render(TEMPLATES["multiple_choice"], item, LETTERS[:3])[0] for item in inputs[1:]]
    mixed = [*inputs, *({"id": str(i), "prompt": prompt} for i, prompt in enumerate(prompts)), inputs[0]]
    artifact = choices_run.artifact
    wanted = settings(artifact=artifact.name, artifacts_root=artifact.parent, device="cpu", batch_tokens=1)
    async with started(create_app(wanted)) as client:
        for options in ({}, {"predictive": "map"}, {"covariance": True, "detail": "full"}):

            async def predict(*items: dict[str, Any], options: Any = options) -> list[dict[str, Any]]:
                response = await client.post("/predict", json={"inputs": items, "options": options})
                assert response.status_code == 200, response.text
                answers: list[dict[str, Any]] = response.json()["predictions"]
                # Each prediction has an id of its own, by which it can be labelled later.
                assert len({prediction.pop("prediction_id") for prediction in answers}) == len(items)
                return answers

            answers = await predict(*mixed)
            assert [(await predict(item))[0] for item in mixed] == answers
            assert [answer.pop("id", None) for answer in answers] == [None, None, None, "0", "1", None]
            assert answers[-1] == answers[0]
            for asked, rendered in zip(answers[1:3], answers[3:5], strict=True):
                assert {**asked, "label_text": None} == {**rendered, "label_text": None}
            assert len({answer["probs"]["A"] for answer in answers[:3]}) == 3
