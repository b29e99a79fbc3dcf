"""``python -m service`` on the default artifact: the real model behind a real socket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import ROOT, predicted, server_process
from typesafe_sdk import Choice, Score, TypeSafeClient

from benchmarks.harness.provenance import ARTIFACT
from laplora.artifact.folder import Artifact, read_artifact
from laplora.artifact.packaged import copy_artifact
from laplora.prompts.questions import Question

TEXTS = [
    "Which valve lies between the left atrium and the left ventricle?",
    "What is a hash table?",
    "Can a state be sued for the deeds of its soldiers abroad?",
    "How is the motor of a fan kept from overheating?",
    "qzx lamp seventeen of of ## tractor",
    "What is the best remedy for a brute-force attack?",
    "How many times " + "may a court hear a case " * 12 + "before it ends?",
    "ça alors ! 映画 🎬",
]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    command = ["-m", "service", "--artifact", str(ARTIFACT), "--batch-tokens", "256"]
    with server_process(command) as process, process.client() as client:
        yield client


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return read_artifact(ARTIFACT)


def test_golden_answers_come_out_of_the_socket(client: httpx.Client) -> None:
    golden = json.loads((ARTIFACT / "golden.json").read_text(encoding="utf-8"))
    answers = predicted(client, *(entry["inputs"]["text"] for entry in golden["answers"]))["predictions"]
    assert answers
    for answer, entry in zip(answers, golden["answers"], strict=True):
        for field in ("map_probs", "probs"):
            assert list(answer[field].values()) == pytest.approx(entry[field], abs=golden["tolerance"])


#: No exam questions, less familiar than every calibration row or nearly: rounding moves none back.
OUT_OF_DISTRIBUTION = [
    "a quietly moving story, told with wit and great care.",
    "SELECT name FROM users WHERE id = 7;",
    "The weather in Lisbon will be sunny on Sunday.",
]


@pytest.mark.parametrize("predictive", ["laplace", "map"])
def test_unfamiliar_inputs_go_to_review_with_every_label(
    client: httpx.Client, artifact: Artifact, predictive: str
) -> None:
    """Also where the model is as sure of them as of anything, and under every predictive."""
    labels = list(artifact.manifest.labels)
    stated = artifact.manifest.familiarity
    assert stated is not None
    for answer in predicted(client, *OUT_OF_DISTRIBUTION, predictive=predictive)["predictions"]:
        assert answer["familiarity"] <= stated.false_alarms
        assert "unfamiliar" in answer["flags"]
        assert answer["decision"] == "review"
        assert answer["prediction_set"] == labels
    familiar = predicted(client, *TEXTS[:4], predictive=predictive)["predictions"]
    assert not any("unfamiliar" in answer["flags"] for answer in familiar)


def test_the_pages_examples_show_what_laplora_adds(client: httpx.Client) -> None:
    """The fine-tuned model alone is certain of a mistake, the served answer is not, and a person should look."""
    examples = (ROOT / "service" / "page" / "static" / "examples.js").read_text(encoding="utf-8")
    texts = dict(re.findall(r'title: "(.+?)", text: "(.+?)"', examples))
    attack, valve, court = predicted(
        client, *(texts[title] for title in ("Sounds certain, is not", "Clearly medicine", "Between two fields"))
    )["predictions"]
    assert attack["map_probs"]["medicine"] > 0.95
    assert 0.4 < max(attack["probs"].values()) < 0.9
    assert [one["decision"] for one in (attack, valve, court)] == ["review", "accept", "review"]
    assert valve["label"] == "medicine"


def test_the_official_client_of_decision_models_reads_a_choice_and_a_score(tmp_path: Path, artifact: Artifact) -> None:
    """The score's artifact is the same one, whose labels were declared to be levels."""
    labels = artifact.manifest.labels
    declared = Question(type="score", instructions="How near to people?", state={"text": "question"})
    for name, question in (("fields", None), ("levels", declared)):
        manifest = artifact.manifest.model_copy(update={"name": name, "question": question})
        copy_artifact(artifact, tmp_path / name, manifest, None)
    command = ["-m", "service", "--artifact", "fields", "--artifacts-root", str(tmp_path), "--also-load", "levels"]
    text = artifact.manifest.template.text
    asked = {
        "field": Choice(instructions=text, criteria=dict.fromkeys(labels)),
        "near": Score(instructions="How near to people?", criteria=list(labels)),
    }
    with server_process(command) as process, process.client() as client:
        (native,) = predicted(client, TEXTS[0])["predictions"]
        with TypeSafeClient(base_url=str(client.base_url), api_key="none", timeout=100) as official:
            answer = official.system_one(state=TEXTS[0], questions=asked)
            (one,) = official.system_one(state={"question": TEXTS[0]}, questions={"n": asked["near"]}).scores.values()
            assert [model.name for model in official.models.list().models] == ["fields", "levels", "jev-latest"]
    assert answer.choices["field"].choice == native["label"] == "medicine"
    assert answer.choices["field"].probabilities == pytest.approx(native["probs"], abs=0.1)
    near = answer.scores["near"]
    assert near.legend == dict(enumerate(labels))
    assert list(near.probabilities.values()) == pytest.approx(list(native["probs"].values()), abs=0.1)
    assert near.score == pytest.approx(sum(level * p for level, p in near.probabilities.items()))
    assert near.score > 2  # medicine is the last level
    assert one.score == pytest.approx(near.score, abs=0.3)
    assert answer.usage.input_tokens == 2 * native["tokens"]
