"""The shift job on a tiny artifact: which rows, what is measured of them, what is kept, what is refused."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from alike_runs import read
from safetensors.torch import load_file
from tiny_runs import FinishedRun, choice_rows, job, reseal, sentiment_rows, write_rows

from laplora.classifier import batches
from laplora.errors import LaploraError
from laplora.linearised import entropy
from laplora.metrics.detection import detection
from laplora.predictor import Predictor
from training import shift as shift_job
from training.__main__ import main
from training.config import RunConfig, load_config
from training.data.section import load_splits
from training.report.markdown import fill
from training.report.shift import shift_report
from training.workspace.stores import FolderStore

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

ROOT = Path(__file__).resolve().parents[2]
REPORT = Path("report") / "shift.json"
TOPICS = ("a lake", "the sun", "steel", "an oak", "a whale", "rust", "bread", "glass", "a fox", "sand")


def other_questions(path: Path) -> Path:
    """Write 60 questions of another kind: 12 of two choices, 36 of three, 12 of four; every tenth is the run's own."""
    rows: list[dict[str, Any]] = []
    for i in range(60):
        choices = ["yes", "no", "it depends", "nobody knows"][: (2, 3, 3, 3, 4)[i % 5]]
        rows.append(
            {"question": f"{TOPICS[i % 10]}, number {i}: alive?", "choices": choices, "label": "ABCD"[i % len(choices)]}
        )
    rows[::10] = choice_rows()[:6]
    return write_rows(path, rows)


def file_data(path: Path, template: str = "multiple_choice", labels: str = "A B C D") -> dict[str, Any]:
    fields = {"dataset": "file", "path": str(path), "template": template, "labels": labels.split()}
    return fields | {"train": 8, "calibration": 4}


def shift_config(folder: Path, run: FinishedRun, **shift: Any) -> Path:
    """Write the configuration of a finished run with a section shift; its results go below ``folder``."""
    sections = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
    sections |= {"runs": str(folder / "runs")} | ({"shift": shift} if shift else {})
    path = folder / "shift.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, choices_run: FinishedRun) -> Path:
    """A configuration with one other data set and two corruptions, measured once."""
    folder = tmp_path_factory.mktemp("shift")
    path = shift_config(
        folder,
        choices_run,
        rows=10,
        sets={"other": file_data(other_questions(folder / "other.jsonl"))},
        corruptions=[{"kind": "typos", "severity": 0.3}, {"kind": "choice_noise"}],
    )
    assert job("shift", path) == 0
    return path


@pytest.fixture(scope="module")
def config(config_file: Path) -> RunConfig:
    return load_config(config_file)


@pytest.fixture(scope="module")
def record(config: RunConfig) -> dict[str, Any]:
    """The report as JSON."""
    return read(config.run_dir / REPORT)  # type: ignore[no-any-return]


@pytest.fixture
def copy(config_file: Path, config: RunConfig, choices_run: FinishedRun, tmp_path: Path) -> Path:
    """The same configuration over a copy of what was measured."""
    shutil.copytree(config.runs, tmp_path / "runs")
    return shift_config(tmp_path, choices_run, **yaml.safe_load(config_file.read_text(encoding="utf-8"))["shift"])


def test_rows_that_the_artifact_cannot_take_or_has_seen_are_left_out_and_counted(
    record: dict[str, Any], config: RunConfig
) -> None:
    sizes = {name: one["rows"] for name, one in record["sets"].items()}
    count = len(load_splits(config.data, seed=config.seed).test)
    assert list(sizes.items()) == [("test", count), ("other", 10), ("typos-0.3", 10), ("choice_noise-0.1", 10)]
    assert config.shift is not None
    test = load_splits(config.shift.sets["other"], seed=config.seed).test
    # The run's own rows begin with "Is a"; the others hold a number.
    four = [e for e in test if e.class_count == 4]
    own = [e for e in test if e.fields["question"].startswith("Is a") and e.class_count < 4]
    assert four and own  # noqa: PT018
    assert record["sets"]["other"]["left_out"] == {"choices": len(four), "repeated": len(own)}
    usable = [e for e in test if e not in four and e not in own][:10]
    assert load_file(config.run_dir / "shift" / "other.safetensors")["labels"].tolist() == [e.label for e in usable]


def test_figures_are_those_of_evaluate_and_answers_those_of_the_service(
    record: dict[str, Any], config: RunConfig, choices_run: FinishedRun, choices_predictor: Predictor
) -> None:
    """On the test rows, in the same batches, so that rounding is the same; every figure follows from the answers."""
    evaluated = read(choices_run.config.run_dir / "report" / "evaluation.json")
    for name in ("map", "laplace"):
        for metric, found in record["sets"]["test"]["predictives"][name].items():
            assert found == pytest.approx(evaluated[name][metric], abs=2e-4), (name, metric)
    kept = {name: load_file(config.run_dir / "shift" / f"{name}.safetensors") for name in record["sets"]}
    inside, served = kept["test"], f"probs.{choices_predictor.recommended}"
    assert {name for name in inside if "." in name} == {f"probs.{name}" for name in choices_predictor.predictives}
    rows = [choices_predictor.encode(e.fields, truncate=True) for e in load_splits(config.data, seed=config.seed).test]
    for index in batches(rows, config.laplace.batch_size):
        for i, answer in zip(index, choices_predictor.predict([rows[i] for i in index]), strict=True):
            assert bool(inside["unfamiliar"][i]) == ("unfamiliar" in answer.flags)
            assert bool(inside["accepted"][i]) == (answer.decision != "review")
            assert inside[served][i, : len(answer.labels)].tolist() == pytest.approx(answer.arrays.probs, abs=1e-6)
    for name, found in record["sets"].items():
        right = kept[name][served].argmax(1) == kept[name]["labels"]
        assert found["accepted"] == int(kept[name]["accepted"].sum())
        assert found["accepted_errors"] == int((~right & kept[name]["accepted"]).sum())
        assert found["unfamiliar"] == pytest.approx(float(kept[name]["unfamiliar"].double().mean()), abs=1e-6)
        if name != "test":
            auroc = detection(*(entropy(answers["probs.map"]) for answers in (inside, kept[name]))).auroc
            assert found["detection"]["map_entropy"]["auroc"] == pytest.approx(auroc, abs=1e-6)


def test_unlike_inputs_are_flagged(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    """Texts of another kind, which have no answer, and words of random letters; hardly any of the run's own rows."""
    outside = {"data": file_data(other_questions(tmp_path / "other.jsonl")), "field": "question"}
    gibberish = {"kind": "gibberish", "severity": 1.0}
    path = shift_config(tmp_path, sentiment_run, out_of_distribution={"questions": outside}, corruptions=[gibberish])
    assert job("shift", path) == 0
    record = read(load_config(path).run_dir / REPORT)
    sets = record["sets"]
    assert sets["questions"]["rows"] == 48
    assert {value for of in sets["questions"]["predictives"].values() for value in of.values()} == {None}
    for name in ("questions", "gibberish-1"):
        assert sets[name]["unfamiliar"] > 0.5
        assert sets[name]["detection"]["familiarity"]["auroc"] > 0.8
    assert sets["test"]["unfamiliar"] < 0.3
    assert shift_report(record).count("| questions | 48 | - |") == 1


def test_a_set_is_answered_once_and_again_for_other_rows_and_another_artifact(
    copy: Path, record: dict[str, Any], choices_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped job continues at the set where it was."""
    answering, write = Mock(wraps=shift_job.answer_set), FolderStore.write
    monkeypatch.setattr(shift_job, "answer_set", answering)

    def answered(*overrides: str, status: int = 0) -> list[str]:
        """Run the job and return which sets it answered."""
        answering.reset_mock()
        assert job("shift", copy, *overrides) == status
        return [call.args[3] for call in answering.call_args_list]

    def interrupted(self: FolderStore, name: str, *arguments: Any) -> None:
        if name == "typos-0.3":
            signal.raise_signal(signal.SIGINT)
        write(self, name, *arguments)

    shutil.rmtree(load_config(copy).run_dir / "shift")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderStore, "write", interrupted)
        assert answered(status=130) == ["test", "other", "typos-0.3"]
    for expected in (["typos-0.3", "choice_noise-0.1"], []):
        assert answered() == expected
        assert read(load_config(copy).run_dir / REPORT) == record
    # The test rows are always all of them.
    assert answered("shift.rows=11") == ["other", "typos-0.3", "choice_noise-0.1"]
    artifact = Path(shutil.copytree(choices_run.artifact, tmp_path / "artifacts" / choices_run.artifact.name))
    reseal(artifact, created="2030-01-01T00:00:00+00:00")
    assert answered(f"artifacts={tmp_path / 'artifacts'}") == list(record["sets"])


def test_an_artifact_that_is_missing_or_of_other_rows_is_refused(
    copy: Path, tmp_path: Path, choices_run: FinishedRun
) -> None:
    """Other rows by the configuration, or because the file has fewer now."""

    def refused(path: Path, message: str, *overrides: str) -> None:
        with pytest.raises(LaploraError, match=message):
            shift_job.shift(load_config(path, list(overrides)))

    refused(copy, "no artifact at 'tiny-choices'", f"artifacts={tmp_path / 'none'}")
    refused(copy, "was made from other rows than this configuration's", "seed=1")
    artifact = Path(shutil.copytree(choices_run.artifact, tmp_path / "artifacts" / choices_run.artifact.name))
    data = read(artifact / "manifest.json")["data"]
    reseal(artifact, data=data | {"rows": data["rows"] | {"test": data["rows"]["test"] + 1}})
    refused(copy, "was made from other rows", f"artifacts={tmp_path / 'artifacts'}")
    refused(shift_config(tmp_path, choices_run), "tiny-choices has no section 'shift': name other")


def test_sets_that_an_artifact_cannot_answer(
    tmp_path: Path, choices_run: FinishedRun, sentiment_run: FinishedRun
) -> None:
    reviews = file_data(write_rows(tmp_path / "reviews.jsonl", sentiment_rows()), "sentiment", "negative positive")
    own = file_data(write_rows(tmp_path / "own.jsonl", choice_rows()))
    rows = [{"text": row["text"] + "!", "label": row["label"][:3]} for row in sentiment_rows()]
    turned = file_data(write_rows(tmp_path / "turned.jsonl", rows), "sentiment", "pos neg")
    questions = file_data(other_questions(tmp_path / "other.jsonl"))
    text = {"out_of_distribution": {"questions": {"data": questions, "field": "text"}}}
    for run, section, message in (
        (choices_run, {"sets": {"reviews": reviews}}, r"^shift: reviews: its rows have the fields \['text'\]"),
        (choices_run, {"sets": {"own": own}}, "two can be used at least, got 0: 0 have"),
        (sentiment_run, {"sets": {"turned": turned}}, r"\['pos', 'neg'\], the artifact takes \['text'\] and answers"),
        (sentiment_run, text, r"shift: questions: its texts are \['question'\], asked for is 'text'"),
        (sentiment_run, {"corruptions": [{"kind": "choice_noise"}]}, "choice_noise needs a data set with choices"),
    ):
        with pytest.raises(LaploraError, match=message):
            shift_job.shift(load_config(shift_config(tmp_path, run, **section)))


def test_publish_puts_the_measured_figures_on_the_page_which_is_what_its_json_says(
    config_file: Path, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, docs = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"), tmp_path / "docs"
    assert fill(page, "shift", {"report": shift_report(read(ROOT / "docs" / "results" / "shift.json"))}) == page
    (docs / "results").mkdir(parents=True)
    (docs / "promises.md").write_text(page, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["shift", "--config", str(config_file), "--publish"]) == 0
    assert read(docs / "results" / "shift.json") == record
    assert shift_report(record) in (docs / "promises.md").read_text(encoding="utf-8")
    assert main(["shift", "--config", str(config_file), "--set", f"runs={tmp_path / 'none'}", "--publish"]) == 1
