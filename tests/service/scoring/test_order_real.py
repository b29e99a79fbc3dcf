"""``options.order_average`` through a real socket, on a real tiny model of questions with two and three choices.

``--batch-tokens 1`` runs every prompt alone, so that the same prompt gives the same numbers whatever else was asked: in
bfloat16 other padding rounds elsewhere. What is left is the order of sums in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import httpx
import pytest
from server_process import server_process
from tiny_runs import FinishedRun

CHOICES = ["good", "bad", "neither of them"]


@pytest.fixture(scope="module")
def client(choices_run: FinishedRun) -> Iterator[httpx.Client]:
    command = ["-m", "service", "--artifact", str(choices_run.artifact), "--device", "cpu", "--batch-tokens", "1"]
    with server_process(command) as process, process.client() as client:
        yield client


def predict(client: httpx.Client, choices: list[str], **options: Any) -> dict[str, Any]:
    inputs = [{"question": "Is a moving plot good?", "choices": choices}]
    response = client.post("/predict", json={"inputs": inputs, "options": options})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()["predictions"][0]
    return answer


def by_text(choices: list[str], probs: dict[str, float]) -> dict[str, float]:
    return dict(zip(choices, probs.values(), strict=True))


@pytest.mark.parametrize("options", [{}, {"mode": "map"}])
def test_the_users_order_does_not_matter(client: httpx.Client, options: dict[str, Any]) -> None:
    averaged = [predict(client, list(c), order_average=True, **options) for c in permutations(CHOICES)]
    truth = by_text(CHOICES, averaged[0]["probs"])
    for choices, answer in zip(permutations(CHOICES), averaged, strict=True):
        assert by_text(list(choices), answer["probs"]) == pytest.approx(truth, abs=1e-9)
        assert answer["label_text"] == averaged[0]["label_text"]
        assert answer["orders"] == 6
        assert 0 <= answer["uncertainty"]["order"] <= answer["uncertainty"]["epistemic"] + 1e-12
    single = [by_text(list(c), predict(client, list(c), **options)["probs"])["good"] for c in permutations(CHOICES)]
    assert max(single) - min(single) > 1e-3
    # The average over the user's orders, each asked once, is the same thing.
    assert sum(single) / len(single) == pytest.approx(truth["good"], abs=1e-9)


def test_evaluate_measures_the_average_beside_the_rest(client: httpx.Client) -> None:
    inputs = [
        {"question": "Is a dull plot good?", "choices": ["good", "bad"], "label": "B"},
        {"question": "Is a moving plot good?", "choices": CHOICES, "label": "A"},
    ]
    response = client.post("/evaluate", json={"inputs": inputs, "options": {"order_average": True}})
    assert response.status_code == 200, response.text
    methods = response.json()["methods"]
    plain = {name for name in methods if not name.endswith("_order_average")}
    assert {"map", "laplace"} <= plain
    assert set(methods) == plain | {f"{name}_order_average" for name in plain}
    assert methods["map_order_average"]["nll"] != methods["map"]["nll"]
