"""A small task from its training to the published page, on the real base model; and what a second call does again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import adapters, folds, passes, splits, student, tasks, tfb
from benchmarks.evidence.answers import read_answers
from benchmarks.evidence.methods.averages import cross_fitted
from benchmarks.evidence.outputs import read_outputs
from benchmarks.evidence.page import render
from benchmarks.evidence.plan import STYLES, Training, Unit, units
from benchmarks.evidence.results import publish
from benchmarks.evidence.rows import Row
from benchmarks.evidence.scores import score
from benchmarks.evidence.tasks import SMALL, Task
from laplora.models.offline import ensure_model
from laplora.prompts.templates import TEMPLATES, PromptTemplate

BUDGET, TEST = 15, 8


@pytest.fixture
def small(small_task: None, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Return a training of a few rows, its base fetched, with few folds and members."""
    ensure_model(SMALL)
    monkeypatch.setattr(folds, "FOLDS", 2)
    monkeypatch.setattr(passes, "MEMBERS", 3)
    monkeypatch.setattr(tfb, "_TRIALS", 2)
    return Training("trec", BUDGET, 0)


@pytest.mark.exhaustive
def test_from_training_to_page(small: Training, tmp_path: Path) -> None:
    command.run(small, Path(), ("laplace", "layers", "passes", "student"))
    outputs = read_outputs(Unit(small, "long"))
    assert outputs.kernel("all").gram.shape == (35, 35 + TEST)
    every = publish((score(unit) for unit in units(small)), tmp_path / "a.json", tmp_path / "b.safetensors")
    methods = {record["method"] for record in every.records}
    assert {"map", "temperature", "laplace", "last_layer", "beta", "dropout", "tfb_temperature"} <= methods
    assert {"conditioned_huq", "conditioned_satrmd", "conditioned_learned"} <= methods
    assert {"retrained", "retrained_folds", "student"} <= methods
    assert {r["style"] for r in every.records if r["method"] == "swag"} == {"long"}
    assert "| Laplace |" in render(every)
    # The two styles are two adapters, and neither is the start.
    weights = [load_file(small.folder / "adapters" / f"{name}.safetensors") for name in ("initial", *STYLES)]
    name = next(name for name in weights[0] if name.endswith("lora_A"))
    assert len({tuple(w[name].flatten()[:50].tolist()) for w in weights}) == 3
    check_what_the_student_learned(small)
    before = {path: path.stat().st_mtime_ns for path in small.folder.rglob("*.safetensors")}
    command.run(small, Path(), ("laplace", "layers", "passes", "student"))
    assert before == {path: path.stat().st_mtime_ns for path in small.folder.rglob("*.safetensors")}


def check_what_the_student_learned(small: Training) -> None:
    """Its teachers' answers and no label of its inputs; of a labelled row half the label."""
    unit, dealt = Unit(small, "long"), splits.deal(small, Path())
    assert not (small.folder / "student" / "early" / "long.safetensors").exists()
    inputs, labelled = student.unlabelled_rows(dealt), folds.fold_rows(small, dealt)
    assert len(inputs) == len(dealt.pool) - len(dealt.draws[0]) == 20
    assert not {row.id for row in inputs} & {row.id for row in (*labelled, *dealt.test)}
    targets = student.input_targets(unit, inputs)
    hidden = [replace(row, label=1 - row.label) for row in inputs]
    assert torch.equal(student.input_targets(unit, hidden), targets)
    of_labelled = student.labelled_targets(unit)
    assert torch.allclose(torch.cat([of_labelled, targets]).sum(1), torch.ones(len(labelled) + len(inputs)))
    assert bool((of_labelled[range(len(labelled)), [row.label for row in labelled]] >= student.LABEL_WEIGHT).all())
    # What it learns from is the method that it is compared with.
    at_test = student.input_targets(unit, dealt.test)
    assert torch.allclose(at_test.double(), cross_fitted(read_outputs(unit), 0).probs, atol=1e-3)


@pytest.mark.exhaustive
def test_options_in_reverse_are_answered_in_the_users_order(
    small: Training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def questions(_: Path) -> list[Row]:
        said = [("a cat", "a stone", "a car"), ("a shoe", "a dog", "a wall"), ("a lamp", "a pen", "a cow")]
        return [({"question": f"{n}: which one lives?", "choices": list(said[n % 3])}, n % 3) for n in range(60)]

    task = Task("trec", SMALL, TEMPLATES["multiple_choice"], ("A", "B", "C"), questions)
    monkeypatch.setitem(tasks.TASKS, "trec", task)
    command.run(small, Path(), ("orders",))
    unit, dealt = Unit(small, "early"), splits.deal(small, Path())
    given, reversed_ = load_file(unit.folder / "members.orders.safetensors")["test"]
    assert torch.equal(given, load_file(unit.folder / "outputs.safetensors")["test.logits"])
    # The same adapter on the same prompts, written out by hand: what it says of the place that an option was shown at.
    classifier = adapters.load_classifier(task)
    adapters.put(classifier, adapters.trained_weights(unit))
    shown = [replace(row, fields={**row.fields, "choices": row.fields["choices"][::-1]}) for row in dealt.test]
    assert torch.equal(passes.forward_logits(classifier, shown).flip(1), reversed_)
    assert not torch.equal(given, reversed_)
    answered = {answers.method.name: answers.probs for answers in read_answers(unit)}
    mixed = torch.stack([given, reversed_]).double().softmax(2).mean(0)
    assert torch.allclose(answered["orders"][0], mixed, atol=1e-6)
    assert "orders_temperature" in answered


def test_a_head_is_trained_and_has_no_posterior(small: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    headed = replace(tasks.TASKS["trec"], template=PromptTemplate("moods", 1, "{text}"), head=True)
    monkeypatch.setitem(tasks.TASKS, "trec", headed)
    command.run(small, Path(), ("laplace",))
    weights = [load_file(small.folder / "adapters" / f"{name}.safetensors") for name in ("initial", "long")]
    assert not torch.equal(weights[0]["score.weight"], weights[1]["score.weight"])
    answered = {path.stem for path in (Unit(small, "early").folder / "answers").iterdir()}
    assert {"map", "temperature", "sms"} <= answered
    assert not {"laplace", "last_layer"} & answered
