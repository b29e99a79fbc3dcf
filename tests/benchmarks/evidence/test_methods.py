"""A small task from its training to its answers, on the real base; a second call; what is served; rivals by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import plan, tasks
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.given_away import added
from benchmarks.evidence.methods import METHODS
from benchmarks.evidence.passes import Passes
from benchmarks.evidence.plan import Training
from benchmarks.evidence.rivals import ON_EMBEDDINGS
from benchmarks.evidence.rows import Row
from benchmarks.evidence.scores import read
from benchmarks.evidence.tasks import Task
from laplora.decisions.review import accept_threshold
from laplora.errors import DataError
from laplora.execution.progress import Silent
from laplora.fitting.entry import fit_as_it_is
from laplora.linearised import entropy
from laplora.prompts.examples import label_tensor
from laplora.prompts.templates import TEMPLATES
from laplora.settings import ExpertSettings, FitSettings

LABELS, CALIBRATION = 21, 7
#: What needs no sentence encoder, which is 84 MB.
HERE = ["temperature", "conditioned", "map", "isotonic", "all_labels", "zero_shot", "logistic_last"]


def cell_of(folder: Path, task: str = "trec") -> Cell:
    return Cell(Training(task, LABELS, 0), folder)


@pytest.mark.real
def test_from_training_to_figures_and_nothing_again(
    small_task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(tmp_path)
    command.run(cell, tmp_path, HERE, [0, 1], trains=False)
    assert {r["method"] for r in command.figures(cell, tmp_path)} == {"zero_shot", "logistic_last"}

    command.run(cell, tmp_path, HERE, [0, 1])
    records = {(r["draw"], r["method"]): r for r in command.figures(cell, tmp_path)}
    once = {"all_labels"}
    assert set(records) == {(draw, name) for draw in (0, 1) for name in HERE if draw == 0 or name not in once}
    honest = {name: records[0, name]["honest"] for name in HERE}
    trained = dict.fromkeys(("temperature", "conditioned", "map", "isotonic"), CALIBRATION)
    assert honest == {**dict.fromkeys(HERE, LABELS), **trained, "all_labels": 2}
    logits = load_file(cell.folder / "adapter.test.safetensors")["logits"]
    loss = torch.nn.functional.cross_entropy(logits, label_tensor(cell.rows(tmp_path).test, 2))
    assert records[0, "map"]["nll"] == records[1, "map"]["nll"] == pytest.approx(float(loss), rel=1e-3)
    assert records[0, "temperature"]["vs_temperature"] == [0, 0]
    assert records[0, "temperature"]["nll"] != records[1, "temperature"]["nll"], "draws differ in rows"

    results, page = tmp_path / "evidence.json", tmp_path / "RESULTS.md"
    command.publish(command.figures(cell, tmp_path), results, page)
    command.publish(list(records.values())[:1], results, page)  # the others stay
    assert len(read(results)) == len(records)
    assert {"task", "base", "skill", "budget", "method", "seed", "draw", "accepted", "forwards"} <= read(results)[
        0
    ].keys()
    assert " 0 of 15 draws: snips" in page.read_text()

    command.pack([cell], tmp_path, tmp_path / "packed")
    (tmp_path / "mine.py").write_text("def fit(log_probs, labels):\n    return lambda asked: asked\n")
    mine = added(tmp_path / "mine.py", tmp_path / "packed" / "trec.safetensors")
    assert [one["nll"] for one in mine] == pytest.approx([records[0, "map"]["nll"]] * 2, rel=1e-3)
    for draw, one in enumerate(mine):
        assert one["vs_temperature"] == pytest.approx(records[draw, "map"]["vs_temperature"], abs=2e-3)

    for name in ("temperature", "map", "zero_shot"):
        cell.answers(0, name).unlink()
    known = {command.place_of(records[0, name]) for name in ("temperature", "map")}
    command.run(cell, tmp_path, HERE, [0], known)
    redone = {name for name in HERE if cell.answers(0, name).is_file()}
    assert redone == {*HERE} - {"map"}, "what is published is not run again, but the reference of what is new"
    cell.answers(0, "logistic_last").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    command.run(cell, tmp_path, HERE, [0, 1])
    again = {(r["draw"], r["method"]): r for r in command.figures(cell, tmp_path)}[0, "logistic_last"]
    assert again | {"seconds": 0} == records[0, "logistic_last"] | {"seconds": 0}
    assert kept == {path: path.stat().st_mtime_ns for path in kept}

    other = replace(cell.task, template=replace(cell.task.template, text="{text}\nMood:"))
    monkeypatch.setitem(tasks.TASKS, "trec", other)
    with pytest.raises(DataError, match=r"was made of other rows or another prompt: delete it"):
        command.figures(cell, tmp_path)


@pytest.mark.real
def test_what_is_served_is_what_the_product_answers(
    small_task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own fit of the same rows, without an encoder, has the same probabilities and accepts the same rows."""
    monkeypatch.setattr("benchmarks.evidence.methods._unadapted", lambda _: ("frozen",))
    cell = cell_of(tmp_path)
    passes = Passes(cell, cell.rows(tmp_path), print, trains=False)
    answers = replace(METHODS["served"], reads=("frozen",)).run(passes, 0)
    rows = tuple(passes.labelled_rows[place] for place in passes.places(0).tolist())
    classifier = passes.classifier
    settings = FitSettings(experts=ExpertSettings(names=("frozen",), encoder=None))
    served = fit_as_it_is(classifier, rows, settings, Silent())
    product = served.predict([dict(row.fields) for row in passes.rows.test])
    probs = torch.tensor([[one.probs[name] for name in classifier.labels] for one in product])
    assert torch.allclose(answers.test.exp().float(), probs.float(), atol=1e-3)
    assert answers.test_entropies is not None
    assert answers.test_entropies.isinf().tolist() == ["unfamiliar" in one.flags for one in product]
    wrong = answers.held_out.argmax(1) != label_tensor(rows, 2)
    threshold = accept_threshold(entropy(answers.held_out.exp()), wrong, settings.calibration.target_risk)
    accepted = answers.test_entropies <= (-1 if threshold is None else threshold)
    assert accepted.tolist() == [one.decision == "accept" for one in product]


@pytest.mark.real
def test_options_are_read_from_questions_alone(
    small_task: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def questions(_: Path) -> list[Row]:
        choices = ("four", "a cat", "red", "Paris")
        return [({"question": f"What is number {n}?", "choices": choices}, n % 4) for n in range(60)]

    task = Task("arc_easy", TEMPLATES["multiple_choice"], ("A", "B", "C", "D"), questions)
    monkeypatch.setitem(tasks.TASKS, "arc_easy", task)
    cell = cell_of(tmp_path, "arc_easy")
    command.run(cell, tmp_path, ["served", "options", "frozen", "words"], [0], trains=False)
    records = {record["method"]: record for record in command.figures(cell, tmp_path)}
    assert {name: record["honest"] for name, record in records.items()} == {"served": LABELS, "options": LABELS}
    assert records["served"]["nll"] == records["options"]["nll"], "there is nothing to choose from"


def test_the_plan_is_that_of_the_page() -> None:
    of = [plan.planned(seed) for seed in plan.SEEDS]
    assert [len(each) for each in of] == [8 + 3 * 3 + 3 + 2 + 5] * 3
    assert {one.task for one in of[0]} == {*plan.REPORTED, *plan.SHIFTED}
    assert tasks.SHIFTED.keys() == {*plan.SHIFTED}
    largest = Cell(Training("snips", plan.LABELS, 0, plan.LARGEST), Path())
    assert {name for name in METHODS if METHODS[name].planned(largest)} == {
        *("served", "frozen", "encoder", "pool_unadapted", "zero_shot"),
        *("logistic_last", "logistic_mean", "nearest_last", "nearest_mean"),
    }


def test_a_rival_takes_its_setting_by_folds_and_never_sees_a_held_out_label() -> None:
    draw = np.random.default_rng(0)
    rows, test = draw.normal(size=(60, 5)), draw.normal(size=(9, 5))
    labels = torch.from_numpy((rows[:, 0] + 0.5 * draw.normal(size=60) > 0).astype(int))
    folds = torch.arange(60) % 5

    def probs(strength: float, fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        one = LogisticRegression(C=strength, max_iter=300).fit(rows[fitted], labels[fitted]).predict_proba(asked)
        share = 1 / (fitted.sum() + 1)  # no row has the third class
        return (1 - share) * np.column_stack([one, np.zeros(len(asked))]) + share / 3

    losses = {}
    for strength in ON_EMBEDDINGS.settings:
        out = np.zeros((60, 3))
        for fold in range(5):
            out[folds == fold] = probs(strength, (folds != fold).numpy(), rows[folds == fold])
        losses[strength] = -np.log(out[np.arange(60), labels]).mean()
    best = min(losses, key=lambda strength: losses[strength])
    held_out, answers = ON_EMBEDDINGS.answers(rows, labels, test, folds, 3)
    assert answers.exp().numpy() == pytest.approx(probs(best, np.ones(60, dtype=bool), test))
    assert float(-held_out.gather(1, labels[:, None]).mean()) == pytest.approx(losses[best])

    one = replace(ON_EMBEDDINGS, settings=(best,))
    moved = torch.where(folds == 0, 1 - labels, labels)
    first, second = (one.answers(rows, given, test, folds, 3)[0] for given in (labels, moved))
    assert torch.equal(first[folds == 0], second[folds == 0])
    assert not torch.equal(first, second)
