"""One request with inputs of every kind: the template's own fields, a question with choices, a rendered prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
from serving import FakePredictor, serve

from laplora.prompts.templates import TEMPLATES

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
