"""Rows whose answers are known, so that a wrong one is noticed whatever else goes on at the server."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

#: The allowed difference between an answer and the one to the same row alone: in bfloat16 another padding moves a
#: probability by up to 0.1 (tests/service/process/test_real.py says why).
TOLERANCE = 0.15
PREDICTIVES = ("map", "laplace")
TEXTS = (
    "dull .",
    "an utter waste of time",
    "a warm , funny and beautifully acted film that i will gladly watch again .",
    "the plot makes no sense at all , and the two leads have nothing to say to each other for two long hours .",
    "it is neither as good nor as bad as you have heard",
    "handsome , well played and strangely hollow .",
    "purple seventeen the of tractor ## qzx lamp lamp 0x3f of .",
    "I laughed , I cried , and then I watched it again and again and went home .",
)


@dataclass(frozen=True)
class Known:
    """Texts and what the server says of each when it is asked alone.

    Attributes:
        answers: by text and predictive, ``map_probs`` and ``probs`` one after the other.
        labels: by text the label with the larger probability of ``map``, for rows that need a true label.
    """

    answers: Mapping[tuple[str, str], Sequence[float]]
    labels: Mapping[str, str]

    def wrong(self, texts: Sequence[str], predictive: str, body: Mapping[str, Any]) -> int:
        """Return how many of a response's predictions are not what is known of their rows; a missing one is wrong."""
        predictions = body.get("predictions", [])
        pairs = zip(texts, predictions, strict=False)
        same = sum(_near(_numbers(one), self.answers[text, predictive]) for text, one in pairs)
        return max(len(texts), len(predictions)) - same

    def draw(self, rng: random.Random, most: int) -> list[str]:
        """Return 1 to ``most`` of the texts, some of them twice."""
        return rng.choices(list(self.labels), k=rng.randint(1, most))


def _numbers(prediction: Mapping[str, Any]) -> list[float]:
    return [*prediction["map_probs"].values(), *prediction["probs"].values()]


def _near(numbers: Sequence[float], known: Sequence[float]) -> bool:
    return len(numbers) == len(known) and all(abs(a - b) <= TOLERANCE for a, b in zip(numbers, known, strict=True))


def learn(client: httpx.Client, artifact: Path | None) -> tuple[Known, int]:
    """Return the rows with the answers of a server that has nothing else to do, and how many contradict the artifact.

    Args:
        artifact: whose recorded answers are known beforehand; None where only the server itself says what is right.
    """
    recorded = [] if artifact is None else json.loads((artifact / "golden.json").read_text(encoding="utf-8"))["answers"]
    answers: dict[tuple[str, str], Sequence[float]] = {}
    labels: dict[str, str] = {}
    for text in (*(entry["inputs"]["text"] for entry in recorded), *TEXTS):
        for name in PREDICTIVES:
            response = client.post("/predict", json={"inputs": [{"text": text}], "options": {"predictive": name}})
            (one,) = response.raise_for_status().json()["predictions"]
            answers[text, name] = _numbers(one)
            if name == "map":
                labels[text] = one["label"]
    wrong = sum(
        not _near([*entry["map_probs"], *entry["probs"]], answers[entry["inputs"]["text"], "laplace"])
        for entry in recorded
    )
    return Known(answers, labels), wrong
