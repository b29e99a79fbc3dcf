"""The shift job on a tiny artifact: which rows, what is measured of them, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from alike_runs import read
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import FinishedRun, choice_rows, job, reseal, sentiment_rows, write_rows

from laplora.errors import ConfigError, DataError
from laplora.linearised import entropy
from laplora.metrics.detection import detection
from laplora.predictor import Predictor
from training import shift as shift_job
from training.__main__ import main
from training.config import RunConfig, load_config
from training.data.section import load_splits
from training.report.markdown import fill
from training.report.shift import Answers, publish_shift, shift_figure, shift_report
from training.workspace.runtime import batches
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


def answered(config: RunConfig, name: str) -> Answers:
    """Return the kept answers to a set."""
    return load_file(config.run_dir / "shift" / f"{name}.safetensors")


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
def copy(config_file: Path, config: RunConfig, tmp_path: Path) -> Path:
    """The same configuration over a copy of what was measured."""
    shutil.copytree(config.runs, tmp_path / "runs")
    sections = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    path = tmp_path / "shift.yaml"
    path.write_text(yaml.safe_dump(sections | {"runs": str(tmp_path / "runs")}), encoding="utf-8")
    return path


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
    assert answered(config, "other")["labels"].tolist() == [e.label for e in usable]


def test_the_test_rows_figures_are_those_of_evaluate(record: dict[str, Any], choices_run: FinishedRun) -> None:
    """The same rows in the same batches: what differs is the rounding of sums."""
    evaluated = json.loads((choices_run.config.run_dir / "report" / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("map", "laplace"):
        for metric, found in record["sets"]["test"]["predictives"][name].items():
            assert found == pytest.approx(evaluated[name][metric], abs=2e-4), (name, metric)


def test_every_figure_follows_from_the_kept_answers(record: dict[str, Any], config: RunConfig) -> None:
    inside = answered(config, "test")
    for name, found in record["sets"].items():
        kept = answered(config, name)
        right = kept[f"probs.{record['recommended']}"].argmax(1) == kept["labels"]
        assert found["accepted"] == int(kept["accepted"].sum())
        assert found["accepted_errors"] == int((~right & kept["accepted"]).sum())
        assert found["unfamiliar"] == pytest.approx(float(kept["unfamiliar"].double().mean()), abs=1e-6)
        if name != "test":
            auroc = detection(*(entropy(answers["probs.map"]) for answers in (inside, kept))).auroc
            assert found["detection"]["map_entropy"]["auroc"] == pytest.approx(auroc, abs=1e-6)


def test_answers_flags_and_decisions_are_the_services(config: RunConfig, choices_predictor: Predictor) -> None:
    """In the same batches, so that rounding is the same."""
    rows = [choices_predictor.encode(e.fields, truncate=True) for e in load_splits(config.data, seed=config.seed).test]
    kept = answered(config, "test")
    for index in batches(rows, config.laplace.batch_size):
        for i, answer in zip(index, choices_predictor.predict([rows[i] for i in index]), strict=True):
            assert bool(kept["unfamiliar"][i]) == ("unfamiliar" in answer.flags)
            assert bool(kept["accepted"][i]) == (answer.decision != "review")
            probs = kept[f"probs.{choices_predictor.recommended}"][i, : len(answer.probs)]
            torch.testing.assert_close(probs, torch.tensor(answer.probs, dtype=torch.float64), atol=1e-6, rtol=0)
    assert {name.removeprefix("probs.") for name in kept if "." in name} == set(choices_predictor.predictives)


def test_strange_inputs_are_flagged(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    """Texts of another kind, which have no answer, and words of random letters; hardly any of the run's own rows."""
    stranger = {"data": file_data(other_questions(tmp_path / "other.jsonl")), "field": "question"}
    gibberish = {"kind": "gibberish", "severity": 1.0}
    path = shift_config(tmp_path, sentiment_run, strangers={"questions": stranger}, corruptions=[gibberish])
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
    assert [label.get_text() for label in shift_figure(record).axes[0].get_yticklabels()] == [
        "test rows",
        "gibberish-1",
    ]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """What answers a set; its last argument is the set's name."""
    mock = Mock(wraps=shift_job.answer_set)
    monkeypatch.setattr(shift_job, "answer_set", mock)
    return mock


def titles(answering: Mock) -> list[str]:
    """Return which sets were answered since the last call."""
    names = [call.args[3] for call in answering.call_args_list]
    answering.reset_mock()
    return names


def test_a_stopped_job_continues_at_the_set_where_it_was(copy: Path, record: dict[str, Any], answering: Mock) -> None:
    folder = load_config(copy).run_dir / "shift"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    original = FolderStore.write

    def interrupted(self: FolderStore, name: str, *arguments: Any) -> None:
        if name == "typos-0.3":
            signal.raise_signal(signal.SIGINT)
        original(self, name, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderStore, "write", interrupted)
        assert job("shift", copy) == 130
    titles(answering)
    for expected in (["typos-0.3", "choice_noise-0.1"], []):
        assert job("shift", copy) == 0
        assert titles(answering) == expected
        assert read(load_config(copy).run_dir / REPORT) == record


def test_other_rows_and_another_artifact_are_answered_again(
    copy: Path, choices_run: FinishedRun, tmp_path: Path, answering: Mock
) -> None:
    assert job("shift", copy, "shift.rows=11") == 0
    assert titles(answering) == ["other", "typos-0.3", "choice_noise-0.1"]  # the test rows are always all of them
    artifact = Path(shutil.copytree(choices_run.artifact, tmp_path / "artifacts" / choices_run.artifact.name))
    reseal(artifact, created="2030-01-01T00:00:00+00:00")
    assert job("shift", copy, f"artifacts={tmp_path / 'artifacts'}") == 0
    assert titles(answering) == ["test", "other", "typos-0.3", "choice_noise-0.1"]


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        shift_job.shift(load_config(path, list(overrides)))
    return str(caught.value)


def test_no_section_no_artifact_and_one_of_other_rows(
    copy: Path, tmp_path: Path, choices_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other rows by the configuration, or because the file has fewer now."""
    assert job("shift", copy, f"artifacts={tmp_path / 'none'}") == 1
    assert "no artifact at 'tiny-choices'" in capsys.readouterr().err
    assert "was made from other rows than this configuration's" in refusal(copy, "seed=1")
    artifact = Path(shutil.copytree(choices_run.artifact, tmp_path / "artifacts" / choices_run.artifact.name))
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    manifest["data"]["rows"]["test"] += 1
    reseal(artifact, data=manifest["data"])
    assert "was made from other rows" in refusal(copy, f"artifacts={tmp_path / 'artifacts'}")
    assert "tiny-choices has no section 'shift': name other" in refusal(shift_config(tmp_path, choices_run))


def test_sets_that_an_artifact_cannot_answer(
    tmp_path: Path, choices_run: FinishedRun, sentiment_run: FinishedRun
) -> None:
    def refused(run: FinishedRun, **section: Any) -> str:
        return refusal(shift_config(tmp_path, run, **section))

    reviews = file_data(write_rows(tmp_path / "reviews.jsonl", sentiment_rows()), "sentiment", "negative positive")
    message = refused(choices_run, sets={"reviews": reviews})
    assert message.startswith("shift: reviews: its rows have the fields ['text']")
    own = file_data(write_rows(tmp_path / "own.jsonl", choice_rows()))
    assert "two can be used at least, got 0: 0 have" in refused(choices_run, sets={"own": own})
    rows = [{"text": row["text"] + "!", "label": row["label"][:3]} for row in sentiment_rows()]
    turned = file_data(write_rows(tmp_path / "turned.jsonl", rows), "sentiment", "pos neg")
    assert "['pos', 'neg'], the artifact takes ['text'] and answers ['negative'" in refused(
        sentiment_run, sets={"turned": turned}
    )
    questions = file_data(other_questions(tmp_path / "other.jsonl"))
    for run, field in ((sentiment_run, "text"), (sentiment_run, "choices"), (choices_run, "question")):
        message = refused(run, strangers={"questions": {"data": questions, "field": field}})
        assert f"shift: questions: its texts are ['question'], asked for is '{field}'" in message
    message = refused(sentiment_run, corruptions=[{"kind": "choice_noise"}])
    assert "choice_noise needs a data set with choices" in message


def test_publish_puts_the_measured_figures_on_the_page(
    config_file: Path, config: RunConfig, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    (docs / "results").mkdir(parents=True)
    (docs / "shift.md").write_text("# Shift\n", encoding="utf-8")
    with pytest.raises(DataError, match="one pair of markers"):
        publish_shift(config, docs)
    shutil.copy(ROOT / "docs" / "shift.md", docs)
    monkeypatch.chdir(tmp_path)
    assert main(["shift", "--config", str(config_file), "--publish"]) == 0
    assert json.loads((docs / "results" / "shift.json").read_text(encoding="utf-8")) == record
    assert shift_report(record) in (docs / "shift.md").read_text(encoding="utf-8")
    with Image.open(docs / "results" / "shift.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 8  # an empty canvas has one
    assert main(["shift", "--config", str(config_file), "--set", f"runs={tmp_path / 'none'}", "--publish"]) == 1


def test_the_documentations_page_is_what_its_json_says() -> None:
    page = (ROOT / "docs" / "shift.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "docs" / "results" / "shift.json").read_text(encoding="utf-8"))
    assert fill(page, "shift", {"report": shift_report(record)}) == page
