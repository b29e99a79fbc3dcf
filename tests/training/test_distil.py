"""A student of a finished artifact: what it learns from, what may calibrate it, and that a stopped one continues."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alike_runs import read
from test_entry import rows_of
from tiny_runs import FinishedRun, interrupt_training, reseal, write_rows

from laplora.artifact.folder import read_artifact
from laplora.errors import ConfigError, DataError
from laplora.predictor import Predictor
from training.__main__ import main
from training.config.student import DistilRequest
from training.data.files import SplitPaths
from training.data.section import load_splits
from training.distil import student_config
from training.workspace.provenance import adapter_inputs
from training.workspace.runtime import open_run
from training.workspace.student import Student, open_student
from training.workspace.targets import training_targets

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

NOUNS = ("book", "song", "episode", "series", "trailer", "costume", "finale", "opening")
WORDS = ("great", "awful", "lovely", "boring", "moving", "dull", "funny", "weak", "fine", "odd")


def unlabelled() -> list[dict[str, str]]:
    return [{"text": f"The {noun} was {word}."} for noun in NOUNS for word in WORDS]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, sentiment_run: FinishedRun) -> Path:
    """The run's artifact, to which nothing is unfamiliar: a random base of two layers finds a third of all rows so."""
    familiarity = manifest_fields(sentiment_run)["familiarity"] | {"false_alarms": 1e-6}
    return changed_artifact(sentiment_run, tmp_path_factory.mktemp("flags-nothing"), familiarity=familiarity)


def manifest_fields(run: FinishedRun) -> dict[str, Any]:
    return read(run.artifact / "manifest.json")  # type: ignore[no-any-return]


def changed_artifact(run: FinishedRun, folder: Path, **changes: Any) -> Path:
    target = Path(shutil.copytree(run.artifact, folder / run.artifact.name))
    reseal(target, **changes)
    return target


def rows_named(run: FinishedRun) -> str:
    """The override that names the file of rows which the run's configuration does."""
    return f"data.path={run.config.data.path}"


def probs(predictor: Predictor, inputs: list[dict[str, str]], predictive: str) -> torch.Tensor:
    rows = [predictor.encode(one, truncate=False) for one in inputs]
    answers = predictor.predict(rows, predictive)
    return torch.tensor([answer.arrays.probs.tolist() for answer in answers], dtype=torch.float64)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "inputs.jsonl", [dict(one) for one in unlabelled()])


def test_a_stopped_student_continues_and_answers_by_one_pass_what_its_teacher_averages(
    sentiment_run: FinishedRun,
    teacher: Path,
    sentiment_predictor: Predictor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On what it learned it is nearer to the teacher's average than the teacher's own forward pass is."""
    rows = rows_of(sentiment_run)
    known = [{"text": rows[part][0]["text"].upper()} for part in ("train", "calibration", "test")]
    file = write_rows(tmp_path / "inputs.jsonl", [*unlabelled(), *known, unlabelled()[0]])
    settings = [rows_named(sentiment_run), *(f"{name}={tmp_path / name}" for name in ("runs", "artifacts"))]
    given = ["distil", "--artifact", str(teacher), "--inputs", str(file), "--predictive", "laplace"]
    given += [f"--set={setting}" for setting in settings]
    interrupt_training(30, lambda: main(given))
    assert "the teacher tiny-sentiment answers by laplace" in capsys.readouterr().out
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "the teacher tiny-sentiment answers by laplace" not in shown
    for said in ("resuming at", "24 test rows: student by temperature NLL", "; teacher by laplace NLL"):
        assert said in shown
    student = Predictor.load(tmp_path / "artifacts" / "tiny-sentiment-student", device="cpu")
    average = probs(sentiment_predictor, unlabelled(), "laplace")
    learned, own = (
        (average * (average / probs(one, unlabelled(), "map")).log()).sum() for one in (student, sentiment_predictor)
    )
    assert learned < own
    assert student.recommended == "temperature"
    manifest, of = student.artifact.manifest, read_artifact(teacher)
    record = {"teacher": of.name, "teacher_digest": of.digest, "predictive": "laplace", "unfamiliar": 0}
    assert manifest.data["student"].items() >= (record | {"inputs": len(unlabelled())}).items()
    assert manifest.config["student"]["teacher"] == str(teacher)
    assert manifest.data["rows"] == of.manifest.data["rows"]
    trained = read(tmp_path / "runs" / "tiny-sentiment-student" / "training_log.json")[-1]
    assert trained["step"] == manifest.config["optimizer"]["steps"] == round(60 * (40 + len(unlabelled()) + 4) / 40)
    assert trained["epoch"] == pytest.approx(60 * 6 / 40, rel=0.1)


def test_a_training_row_is_learned_from_label_and_teacher_and_another_not_at_all(
    teacher: Path, inputs: Path, sentiment_run: FinishedRun, sentiment_predictor: Predictor, tmp_path: Path
) -> None:
    overrides = (rows_named(sentiment_run), f"runs={tmp_path / 'runs'}")
    request = DistilRequest(teacher, inputs, predictive="laplace", label_weight=0.25, overrides=overrides)
    run = open_run(student_config(request, read_artifact(teacher)))
    targets = torch.stack([target for _, target in training_targets(run)]).double()
    labelled = len(run.splits.train)
    assert len(targets) == labelled + len(unlabelled())
    assert torch.allclose(targets.sum(1), torch.ones(len(targets), dtype=torch.float64), atol=1e-6)
    taught = probs(sentiment_predictor, [dict(e.fields) for e in run.splits.train], "laplace")
    labels = torch.nn.functional.one_hot(torch.tensor([e.label for e in run.splits.train]), 2)
    assert torch.allclose(targets[:labelled], 0.25 * labels + 0.75 * taught, atol=1e-5)
    texts = ("0x3f 0x77 0x01 ;;", "SELECT id FROM accounts WHERE balance > 100", "zq xv kk jj ww")
    assert run.student is not None
    others = tuple(replace(one, fields={"text": text}) for one, text in zip(run.student.inputs, texts, strict=False))
    other = replace(run.student, teacher=read_artifact(sentiment_run.artifact), inputs=others, label_weight=1.0)
    alone = replace(run, student=other, own_folder=tmp_path)
    assert adapter_inputs(alone) != adapter_inputs(run), "what an adapter has learned from is known"
    targets = torch.stack([target for _, target in training_targets(alone)]).double()
    assert torch.equal(targets[:labelled], labels.double())
    record = read(tmp_path / "student.json")
    assert record["inputs"] == 3
    assert record["unfamiliar"] == labelled + 3 - len(targets) > 0


# Which rows may calibrate.


def opened(run: FinishedRun, **settings: Any) -> tuple[Student, Any]:
    """Open a student of an artifact that is changed or not, without its run."""
    folder = settings.pop("artifact", run.artifact)
    overrides = (rows_named(run), *settings.pop("overrides", ()))
    request = DistilRequest(folder, settings.pop("inputs"), overrides=overrides, **settings)
    config = student_config(request, read_artifact(folder))
    assert config.student is not None
    splits = load_splits(config.data, seed=config.seed, hold_out=config.holds_out)
    return open_student(config, config.student, splits)


def test_labels_that_a_teacher_learned_train_its_student_and_others_calibrate_it(
    sentiment_run: FinishedRun, inputs: Path, tmp_path: Path
) -> None:
    rows = rows_of(sentiment_run)
    fresh = [
        {"text": f"A {word} evening.", "label": "positive" if i % 2 else "negative"} for i, word in enumerate(WORDS)
    ]
    repeated = [rows[part][0] for part in ("train", "calibration", "test")] + fresh[:1]
    file = write_rows(tmp_path / "fresh.jsonl", [*fresh, *repeated])
    with pytest.raises(ConfigError, match=r"give --calibration FILE .* or learn from --predictive (temp|lap|map)"):
        opened(sentiment_run, inputs=inputs, predictive="conditioned")
    with pytest.raises(ConfigError, match="made from other rows"):  # the test rows of another seed trained it
        opened(sentiment_run, inputs=inputs, predictive="laplace", overrides=["seed=1"])
    found, splits = opened(sentiment_run, inputs=inputs, predictive="conditioned", calibration=file)
    assert found.predictive == "conditioned"
    assert [e.fields["text"] for e in splits.calibration] == [one["text"] for one in fresh]
    texts = {e.fields["text"] for e in splits.train}
    assert texts == {one["text"] for part in ("train", "calibration") for one in rows[part]}
    assert len(splits.test) == len(rows["test"])
    assert splits.report["rows"] == {"train": 72, "calibration": 10, "test": 24}
    known = write_rows(tmp_path / "known.jsonl", repeated[:3])
    with pytest.raises(DataError, match="no row is left"):
        opened(sentiment_run, inputs=inputs, predictive="conditioned", calibration=known)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (None, {"config": {"laplace": {}}}, "was not made by"),
        (None, {"labels": ["positive", "negative"]}, "they must be the same, in the same order"),
        ("data", {"source_detail": "file: others"}, "made from other rows"),
        ("data", {"rows": {"train": 0, "calibration": 32}}, "does not count the rows"),
        ("config", {"student": {"teacher": "a", "inputs": "b"}}, "is itself a student"),
        ("config", {"optimizer": {"steps": "many"}}, r"\n  optimizer\.steps: "),
        ("config", {"optimizer": {"steps": None}}, "was not made by"),
        ("config", {"base": {"model": "somebody/else"}}, "names 'somebody/else'"),
        ("config", {"base": {"revision": "a1"}}, "one of the two was changed"),
        ("config", {"calibration": {"rows": "cross_fit"}}, r"was trained on every label .* the teacher never saw$"),
        ("predictives", {"temperature": None}, "has no predictive 'temperature'"),
    ],
)
def test_what_is_no_teacher_is_refused(
    section: str | None,
    changes: dict[str, Any],
    message: str,
    sentiment_run: FinishedRun,
    inputs: Path,
    tmp_path: Path,
) -> None:
    """Also a manifest at odds with itself, by name: nothing but the job reads these parts."""
    if section is not None:
        ((name, change),) = changes.items()
        whole = manifest_fields(sentiment_run)[section]
        whole[name] = {**(whole.get(name) or {}), **change} if isinstance(change, dict) else change
        changes = {section: {name: value for name, value in whole.items() if value is not None}}
    artifact = changed_artifact(sentiment_run, tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        opened(sentiment_run, artifact=artifact, inputs=inputs, predictive="temperature")


# Whose word counts for what is read and written.


def test_an_artifact_does_not_say_what_its_student_reads_nor_where_it_is_written(
    sentiment_run: FinishedRun, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that it names is read where the user names it too, as the message says; or another one."""
    elsewhere = str(tmp_path / "elsewhere")
    sets = {"other": {"dataset": "file", "path": elsewhere, "template": "sentiment", "labels": ["a", "b"]}}
    theirs = {"train": str(tmp_path / "it's theirs.jsonl"), "calibration": None, "test": None}
    config = manifest_fields(sentiment_run)["config"]
    config |= {"runs": elsewhere, "artifacts": elsewhere, "shift": {"sets": sets}}
    config["data"]["path"] = theirs
    artifact = changed_artifact(sentiment_run, tmp_path, name="somebodys", config=config)
    assert main(["distil", "--artifact", str(artifact), "--inputs", str(inputs)]) == 1
    message = capsys.readouterr().err
    options = shlex.split(message[message.index("--set") :])
    assert len(options) == 2
    for override, train in ((options[1], str(theirs["train"])), ("data.path.train=mine.jsonl", "mine.jsonl")):
        made = student_config(DistilRequest(artifact, inputs, overrides=(override,)), read_artifact(artifact))
        assert made.data.path == SplitPaths(train=Path(train))
        assert (made.name, made.runs, made.artifacts) == ("tiny-sentiment-student", Path("runs"), tmp_path)
        assert made.shift is None
    config["data"] |= {"dataset": "hub:owner/rows", "path": None}  # may be a folder called so
    artifact = changed_artifact(sentiment_run, tmp_path / "hub", config=config)
    with pytest.raises(ConfigError, match=r"--set .data\.dataset="):
        student_config(DistilRequest(artifact, inputs), read_artifact(artifact))
