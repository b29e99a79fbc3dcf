"""One request with inputs of every kind: the template's own fields, a question with choices, a rendered prompt.

On fakes, whose probabilities name the input, up to the largest request; on real tiny models one prompt a batch
(``--batch-tokens 1``), so that what is the same prompt is the same numbers, whatever it came with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_process import server_process
from serving import FakePredictor, serve
from tiny_runs import FinishedRun

from laplora.prompts.templates import TEMPLATES, PromptTemplate, render

pytestmark = pytest.mark.anyio

LETTERS = tuple("ABCD")
PAIR = PromptTemplate("pair", 1, "{premise} entails {hypothesis}? Answer:")
#: By template, how an input of each kind is written for number i; the number ends up among its prompt's tokens.
KINDS: dict[str, list[Any]] = {
    "multiple_choice": [
        lambda i: {"question": f"number {i}", "choices": ["x", "y"]},
        lambda i: {"question": f"number {i}", "choices": ["x", "y", "z"]},
        lambda i: {"choices": ["w", "x", "y", "z"], "question": f"number {i}"},
        lambda i: {"prompt": f"rendered {i}"},
    ],
    "winogrande": [
        lambda i: {"question": f"_ is {i}", "choices": ["x", "y"]},
        lambda i: {"prompt": f"rendered {i}"},
    ],
    "boolq": [
        lambda i: {"question": f"is it {i} now", "passage": "so it is"},
        lambda i: {"passage": f"it is {i} now", "question": "is it so"},
        lambda i: {"prompt": f"rendered {i}"},
    ],
    "sentiment": [lambda i: {"text": f"review {i}"}, lambda i: {"prompt": f"rendered {i}"}],
    "pair": [lambda i: {"premise": "x", "hypothesis": f"y {i} z"}, lambda i: {"prompt": f"rendered {i}"}],
}
TEMPLATES_AND_OWN = {**TEMPLATES, "pair": PAIR}


def classes_of(item: dict[str, Any], labels: tuple[str, ...]) -> int:
    return len(item["choices"]) if "choices" in item else len(labels)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [{}, {"mode": "map"}, {"predictive": "ensemble"}])
async def test_kinds_mix_up_to_the_largest_request(name: str, options: dict[str, Any]) -> None:
    labels = LETTERS[:2] if name == "winogrande" else LETTERS
    draw = random.Random(5)
    numbers = draw.sample(range(100, 99_000), 256)
    inputs = [draw.choice(KINDS[name])(number) for number in numbers]
    ids = {i: f"id {i}" for i in draw.sample(range(256), 128)}
    sent = [{"id": ids[i], **item} if i in ids else item for i, item in enumerate(inputs)]
    async with serve(FakePredictor(template=TEMPLATES_AND_OWN[name], labels=labels)) as served:
        response = await served.client.post("/predict", json={"inputs": sent, "options": options})
        more = await served.client.post("/predict", json={"inputs": [*inputs, inputs[0]]})
    assert response.status_code == 200, response.text
    assert (more.status_code, more.json()["error"]["limit"], more.json()["error"]["got"]) == (413, 256, 257)
    answers = response.json()["predictions"]
    assert [round(answer["probs"]["A"] * 100_000) for answer in answers] == numbers
    assert [answer.get("id") for answer in answers] == [ids.get(i) for i in range(256)]
    assert [len(answer["probs"]) for answer in answers] == [classes_of(item, labels) for item in inputs]
    for item, answer in zip(inputs, answers, strict=True):
        expected = item["choices"][LETTERS.index(answer["label"])] if "choices" in item else answer["label"]
        assert answer["label_text"] == expected


async def test_orders_are_averaged_of_those_that_have_choices() -> None:
    choice, prompt = {"question": "number 700", "choices": ["x", "y", "z"]}, {"prompt": "rendered 900"}
    async with serve(FakePredictor(template=TEMPLATES["multiple_choice"], labels=LETTERS)) as served:
        body = {"inputs": [choice, prompt], "options": {"order_average": True}}
        response = await served.client.post("/predict", json=body)
    # A rendered prompt has no choices to reorder: said so, by its place, and not answered as if it had.
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_input")
    assert response.json()["error"]["field"].startswith("inputs.1")


async def test_evaluate_mixes_them_too() -> None:
    inputs = [{**make(i + 100), "label": "B"} for i, make in enumerate(KINDS["multiple_choice"])]
    async with serve(FakePredictor(template=TEMPLATES["multiple_choice"], labels=LETTERS)) as served:
        response = await served.client.post("/evaluate", json={"inputs": inputs, "options": {"resamples": 10}})
        # The third choice of two is no label that this input can have.
        wrong = [*inputs[:3], {"question": "a", "choices": ["x", "y"], "label": "C"}]
        refused = await served.client.post("/evaluate", json={"inputs": wrong})
    assert (response.status_code, response.json()["rows"]) == (200, 4)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "inputs.3.label")


@pytest.fixture(scope="module", params=["sentiment", "choices"])
def tiny(request: pytest.FixtureRequest) -> Iterator[tuple[str, httpx.Client]]:
    run: FinishedRun = request.getfixturevalue(f"{request.param}_run")
    command = ["-m", "service", "--artifact", str(run.artifact), "--device", "cpu", "--batch-tokens", "1"]
    with server_process(command, {"LAPLORA_AUTH": "off"}) as process, process.client() as client:
        yield request.param, client


def predict(client: httpx.Client, inputs: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    response = client.post("/predict", json={"inputs": inputs, "options": options})
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    # Each prediction has an id of its own, by which it can be labelled later.
    assert len({prediction.pop("prediction_id") for prediction in found}) == len(inputs)
    return found


REAL_INPUTS: dict[str, tuple[str, tuple[str, ...], list[dict[str, Any]]]] = {
    "sentiment": (
        "sentiment",
        ("negative", "positive"),
        [{"text": "The plot was dull."}, {"text": "a lovely film 映画 \u202e"}, {"text": "NUL \x00 and \ufdfa"}],
    ),
    "choices": (
        "multiple_choice",
        ("A", "B", "C"),
        [
            {"question": "Is a dull plot good?", "choices": ["good", "bad"]},
            {"question": "Is a moving plot good?", "choices": ["good", "bad", "neither of them"]},
            {"question": "NUL \x00?", "choices": ["\ufdfa", "same", "same"]},
        ],
    ),
}


@pytest.mark.parametrize("options", [{}, {"mode": "map"}, {"mode": "fast"}, {"covariance": True}])
def test_on_a_real_model_an_input_is_its_prompt_whatever_it_came_with(
    tiny: tuple[str, httpx.Client], options: dict[str, Any]
) -> None:
    name, client = tiny
    template, labels, own = REAL_INPUTS[name]
    rendered = [render(TEMPLATES[template], item, labels) for item in own]
    # Those with a choice for every label, written as a question and as the prompt that the template makes of it.
    twins = [i for i, (_, classes) in enumerate(rendered) if classes == len(labels)]
    assert len(twins) >= 2
    mixed = [*own, *({"id": str(i), "prompt": rendered[i][0]} for i in twins), own[0]]
    answers = predict(client, mixed, **options)
    assert [answer.get("id") for answer in answers] == [None] * len(own) + [str(i) for i in twins] + [None]
    assert answers[-1] == answers[0]
    for place, i in enumerate(twins, start=len(own)):
        apart = {"id", "label_text"}
        assert {k: v for k, v in answers[place].items() if k not in apart} == {
            k: v for k, v in answers[i].items() if k not in apart
        }
    alone = [predict(client, [item], **options)[0] for item in mixed]
    assert alone == answers
    assert len({answer["probs"]["A" if name == "choices" else "negative"] for answer in answers[: len(own)]}) == len(
        own
    )
