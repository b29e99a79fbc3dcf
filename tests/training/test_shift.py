"""The shift job on a tiny artifact: which rows, what is measured of them, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from tiny_runs import FinishedRun, choice_rows, job, reseal, sentiment_rows, write_rows

from laplora.decisions.uncertainty import FLAGS
from laplora.errors import ConfigError, DataError
from laplora.fitting.corruptions import corrupt
from laplora.linearised import entropy
from laplora.metrics.detection import detection
from laplora.predictor import Predictor
from training import shift as shift_job
from training.__main__ import main
from training.config import RunConfig, ShiftConfig, config_hash_fields, load_config
from training.data.section import load_splits
from training.report.markdown import fill
from training.report.shift import publish_shift, published_shifts
from training.report.shift_answers import SetAnswers, read_answers
from training.report.shift_tables import bold_best, page_section, shift_figure, shift_tables, shown_predictives
from training.workspace.runtime import batches

pytestmark = pytest.mark.usefixtures("ctrl_c_interrupts")

ROOT = Path(__file__).resolve().parents[2]
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


def report(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.run_dir / "report" / "shift.json").read_text(encoding="utf-8"))
    return found


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
    return report(config)


@pytest.fixture
def copy(config_file: Path, config: RunConfig, tmp_path: Path) -> Path:
    """The same configuration over a copy of what was measured."""
    shutil.copytree(config.runs, tmp_path / "runs")
    sections = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    path = tmp_path / "shift.yaml"
    path.write_text(yaml.safe_dump(sections | {"runs": str(tmp_path / "runs")}), encoding="utf-8")
    return path


def answered(config: RunConfig, name: str) -> SetAnswers:
    """Return the kept answers to a set, whatever they were made from."""
    path = config.run_dir / "shift" / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        answers = read_answers(path, file.metadata()["made_from"])
    assert answers is not None
    return answers


# Which rows.


def test_every_set_is_there_in_order(record: dict[str, Any], config: RunConfig) -> None:
    count = len(load_splits(config.data, seed=config.seed).test)
    assert [(name, of_set["kind"], of_set["rows"]) for name, of_set in record["sets"].items()] == [
        ("test", "in_distribution", count),
        ("other", "shifted", 10),
        ("typos-0.3", "corrupted", 10),
        ("choice_noise-0.1", "corrupted", 10),
    ]


def test_rows_that_the_artifact_cannot_take_or_has_seen_are_left_out_and_counted(
    record: dict[str, Any], config: RunConfig
) -> None:
    assert config.shift is not None
    test = load_splits(config.shift.sets["other"], seed=config.seed).test
    # The run's own rows begin with "Is a"; the others hold a number.
    four = [e for e in test if e.class_count == 4]
    own = [e for e in test if e.fields["question"].startswith("Is a") and e.class_count < 4]
    assert four
    assert own
    assert record["sets"]["other"]["left_out"] == {"choices": len(four), "repeated": len(own)}
    usable = [e for e in test if e not in four and e not in own][:10]
    assert answered(config, "other").labels.tolist() == [e.label for e in usable]


# What is measured.


def test_the_test_rows_figures_are_those_of_evaluate(record: dict[str, Any], choices_run: FinishedRun) -> None:
    """The same rows in the same batches: what differs is the rounding of sums."""
    evaluated = json.loads((choices_run.config.run_dir / "report" / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("map", "laplace"):
        for metric in ("accuracy", "nll", "ece", "brier"):
            found = record["sets"]["test"]["predictives"][name][metric]
            assert found == pytest.approx(evaluated[name][metric], abs=2e-4), (name, metric)


def test_every_figure_follows_from_the_kept_answers(record: dict[str, Any], config: RunConfig) -> None:
    def share(rows: torch.Tensor) -> Any:
        return pytest.approx(float(rows.double().mean()), abs=1e-6)

    inside = answered(config, "test")
    for name, found in record["sets"].items():
        kept = answered(config, name)
        assert list(found["predictives"]) == list(kept.predictives)
        assert found["label_mass"] == share(kept.label_mass)
        assert found["truncated"] == 0
        for predictive, values in found["predictives"].items():
            rows = kept.predictives[predictive]
            right = rows.probs.argmax(1) == kept.labels
            assert values["accuracy"] == share(right)
            assert values["review"] == share(rows.review)
            assert values["accepted"] == int((~rows.review).sum())
            assert values["accepted_errors"] == int((~right & ~rows.review).sum())
            assert (values["epistemic"] is None) == (rows.epistemic is None) == (predictive in ("map", "temperature"))
            assert values["total_entropy"] == share(entropy(rows.probs))
        assert kept.deferral is not None
        assert found["fast"]["handed_over"] == share(kept.deferral[:, 0])
        assert found["fast"]["unfamiliar"] == share(kept.deferral[:, 1])
        for predictive, alike in found["fast"]["same_decision"].items():
            assert alike == share(kept.predictives[predictive].review == kept.predictives["laplace"].review)
        if name == "test":
            assert found["detection"] == {}
            continue
        mass = detection(-inside.label_mass, -kept.label_mass)
        for value in ("auroc", "fpr_at_95_tpr"):
            assert found["detection"]["label_mass"][value] == pytest.approx(getattr(mass, value), abs=1e-6)
        entropies = [entropy(a.predictives["map"].probs) for a in (inside, kept)]
        assert found["detection"]["map_entropy"]["auroc"] == pytest.approx(detection(*entropies).auroc, abs=1e-6)
        assert set(found["predictives"]["laplace"]["detection"]) == {"total_entropy", "confidence", "epistemic"}


def test_answers_flags_and_decisions_are_the_services(config: RunConfig, choices_predictor: Predictor) -> None:
    """In the same batches, so that rounding is the same; fast as served is laplace where it defers."""
    examples = load_splits(config.data, seed=config.seed).test
    rows = [choices_predictor.encode(e.fields, truncate=True) for e in examples]
    answers = answered(config, "test")
    kept = answers.predictives["laplace"]
    assert answers.deferral is not None
    for index in batches(rows, config.laplace.batch_size):
        batch = [rows[i] for i in index]
        for i, answer in zip(index, choices_predictor.predict(batch), strict=True):
            assert [flag for k, flag in enumerate(FLAGS) if kept.flags[i, k]] == answer.flags
            assert bool(kept.review[i]) == (answer.decision == "review")
            assert float(kept.score[i]) == answer.score
        for i, answer in zip(index, choices_predictor.predict(batch, "fast"), strict=True):
            assert (answer.predictive == "laplace") == bool(answers.deferral[i, 0])
    assert kept.flags.any()
    alone, served = (answers.predictives[name].probs for name in ("fast", "fast_served"))
    assert torch.equal(served, kept.probs.where(answers.deferral[:, :1], alone))


def test_what_is_unfamiliar_is_deferred(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    """Texts of another kind, which have no answer, and words of random letters; hardly any of the run's own rows."""
    stranger = {"data": file_data(other_questions(tmp_path / "other.jsonl")), "field": "question"}
    gibberish = {"kind": "gibberish", "severity": 1.0}
    path = shift_config(tmp_path, sentiment_run, strangers={"questions": stranger}, corruptions=[gibberish])
    assert job("shift", path) == 0
    record = report(load_config(path))
    sets = record["sets"]
    assert [of_set["kind"] for of_set in sets.values()] == ["in_distribution", "stranger", "corrupted"]
    assert sets["questions"]["rows"] == 48
    for values in sets["questions"]["predictives"].values():
        assert [values[m] for m in ("accuracy", "nll", "ece", "accepted_errors")] == [None] * 4
        assert values["total_entropy"] > 0
    for name in ("questions", "gibberish-1"):
        assert sets[name]["fast"]["handed_over"] >= sets[name]["fast"]["unfamiliar"] > 0.5
        assert sets[name]["detection"]["familiarity"]["auroc"] > 0.8
    assert sets["test"]["fast"]["unfamiliar"] < 0.3
    assert shift_tables(record).count("| questions | 48 |") == 2  # entropies and what is deferred
    assert shift_figure(record).axes


def test_the_best_of_a_row_is_a_number_not_a_text() -> None:
    assert bold_best(["10.200", "9.800"], min) == ["10.200", "**9.800**"]
    assert bold_best(["10.200", "9.800"], None) == ["10.200", "9.800"]


# What is kept.


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which sets are answered."""
    names: list[str] = []
    original = shift_job.answer_set

    def answer_set(predictor: Predictor, examples: Any, batch_size: int, title: str) -> SetAnswers:
        names.append(title.split()[0])
        return original(predictor, examples, batch_size, title)

    monkeypatch.setattr(shift_job, "answer_set", answer_set)
    return names


def test_a_measured_set_is_not_answered_again(
    copy: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the model is loaded; and the report is the same."""
    monkeypatch.setattr(Predictor, "load", lambda *_a, **_k: pytest.fail("nothing is left to answer"))
    assert job("shift", copy) == 0
    assert report(load_config(copy)) == record


def test_a_stopped_job_continues_at_the_set_where_it_was(copy: Path, record: dict[str, Any], titles: list[str]) -> None:
    folder = load_config(copy).run_dir / "shift"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    original = shift_job.write_answers

    def interrupted(path: Path, *arguments: Any) -> None:
        if path.stem == "typos-0.3":
            signal.raise_signal(signal.SIGINT)
        original(path, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift_job, "write_answers", interrupted)
        assert job("shift", copy) == 130
    titles.clear()
    assert job("shift", copy) == 0
    assert titles == ["typos-0.3", "choice_noise-0.1"]
    assert report(load_config(copy)) == record


def test_other_rows_and_damaged_files_are_answered_again(copy: Path, titles: list[str]) -> None:
    damaged = load_config(copy).run_dir / "shift" / "choice_noise-0.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert job("shift", copy) == 0
    assert titles == ["choice_noise-0.1"]
    titles.clear()
    assert job("shift", copy, "shift.rows=11") == 0
    assert titles == ["other", "typos-0.3", "choice_noise-0.1"]  # the test rows are always all of them


def test_another_artifact_answers_everything_again(
    copy: Path, choices_run: FinishedRun, tmp_path: Path, titles: list[str]
) -> None:
    artifact = Path(shutil.copytree(choices_run.artifact, tmp_path / "artifacts" / choices_run.artifact.name))
    reseal(artifact, created="2030-01-01T00:00:00+00:00")
    assert job("shift", copy, f"artifacts={tmp_path / 'artifacts'}") == 0
    assert titles == ["test", "other", "typos-0.3", "choice_noise-0.1"]


# What is refused.


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        shift_job.shift(load_config(path, list(overrides)))
    return str(caught.value)


def test_a_configuration_without_the_section_or_an_artifact(
    copy: Path, tmp_path: Path, choices_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job("shift", copy, f"artifacts={tmp_path / 'none'}") == 1
    assert "no artifact at 'tiny-choices'" in capsys.readouterr().err
    assert "tiny-choices has no section 'shift': name other" in refusal(shift_config(tmp_path, choices_run))


@pytest.mark.parametrize("override", ["seed=1", "data.train=30"])
def test_an_artifact_of_other_rows(copy: Path, override: str) -> None:
    assert "was made from other rows than this configuration's" in refusal(copy, override)


def test_rows_that_were_edited_since(copy: Path, tmp_path: Path, choices_run: FinishedRun) -> None:
    """The same configuration, but the file has fewer rows now."""
    artifact = Path(shutil.copytree(choices_run.artifact, tmp_path / "artifacts" / choices_run.artifact.name))
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    manifest["data"]["rows"]["test"] += 1
    reseal(artifact, data=manifest["data"])
    assert "was made from other rows" in refusal(copy, f"artifacts={tmp_path / 'artifacts'}")


def test_sets_that_an_artifact_with_choices_cannot_answer(tmp_path: Path, choices_run: FinishedRun) -> None:
    reviews = file_data(write_rows(tmp_path / "reviews.jsonl", sentiment_rows()), "sentiment", "negative positive")
    message = refusal(shift_config(tmp_path, choices_run, sets={"reviews": reviews}))
    assert message.startswith("shift.sets.reviews: its rows have the fields ['text'], the artifact's template")
    own = file_data(write_rows(tmp_path / "own.jsonl", choice_rows()))
    message = refusal(shift_config(tmp_path, choices_run, sets={"own": own}))
    assert "0 of its 60 test rows can be used (0 have a number of choices" in message
    assert "60 are among the run's rows" in message
    stranger = {"data": file_data(other_questions(tmp_path / "other.jsonl")), "field": "question"}
    message = refusal(shift_config(tmp_path, choices_run, strangers={"questions": stranger}))
    assert "shift.strangers.questions: the artifact's template has the fields ['choices', 'question']" in message


def test_sets_that_an_artifact_of_texts_cannot_answer(tmp_path: Path, sentiment_run: FinishedRun) -> None:
    rows = [{"text": row["text"] + "!", "label": row["label"][:3]} for row in sentiment_rows()]
    turned = file_data(write_rows(tmp_path / "turned.jsonl", rows), "sentiment", "pos neg")
    message = refusal(shift_config(tmp_path, sentiment_run, sets={"turned": turned}))
    assert "its labels are ['pos', 'neg'], the artifact answers ['negative', 'positive']" in message
    questions = file_data(other_questions(tmp_path / "other.jsonl"))
    for field in ("text", "choices"):
        stranger = {"data": questions, "field": field}
        message = refusal(shift_config(tmp_path, sentiment_run, strangers={"questions": stranger}))
        assert f"its rows have the fields ['choices', 'question'], no text '{field}'" in message
    message = refusal(shift_config(tmp_path, sentiment_run, corruptions=[{"kind": "choice_noise"}]))
    assert "choice_noise needs a data set with choices" in message


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "name at least one set, stranger or corruption"),
        ({"sets": {"test": {"dataset": "arc_easy"}}}, "'test': each set and corruption needs its name"),
        ({"sets": {"a/b": {"dataset": "arc_easy"}}}, "'a/b': each set"),
        ({"corruptions": [{"kind": "typos"}, {"kind": "typos", "severity": 0.1}]}, "'typos-0.1': each set"),
        ({"corruptions": [{"kind": "blur"}]}, "Input should be 'typos'"),
        ({"corruptions": [{"kind": "typos", "severity": 0}]}, "greater than 0"),
        ({"corruptions": [{"kind": "typos", "severity": 1.5}]}, "less than or equal to 1"),
        ({"rows": 1, "corruptions": [{"kind": "typos"}]}, "greater than or equal to 2"),
    ],
)
def test_sections_that_cannot_be(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShiftConfig.model_validate(section)


def test_the_section_does_not_change_what_a_run_makes(config: RunConfig, choices_run: FinishedRun) -> None:
    assert config_hash_fields(config) == config_hash_fields(choices_run.config)


# The report and the page.


def test_the_report_is_written_whole(config: RunConfig, record: dict[str, Any]) -> None:
    folder = config.run_dir / "report"
    assert (folder / "shift.md").read_text(encoding="utf-8").endswith(shift_tables(record))
    with Image.open(folder / "shift.png") as picture:
        picture.load()
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 8  # an empty canvas has one
    left, right = shift_figure(record).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["test rows", *list(record["sets"])[1:]]
    assert len(left.patches) == len(shown_predictives(record)) * 4
    assert len(right.patches) == 6 * 3
    widths = {round(bar.get_width(), 6) for bar in right.patches}
    assert record["sets"]["other"]["detection"]["label_mass"]["auroc"] in widths


def test_publish_puts_the_measured_figures_on_the_page(
    config_file: Path, record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "shift.md", docs)
    (docs / "results").mkdir()
    (docs / "results" / "shift_another.json").write_text(json.dumps(record | {"name": "another"}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["shift", "--config", str(config_file), "--publish"]) == 0
    another, published = published_shifts(docs / "results")
    assert published == record
    page = (docs / "shift.md").read_text(encoding="utf-8")
    assert fill(page, "shift", page_section([another, published])) == page
    assert shift_tables(published) in page
    assert page.index("### another\n") < page.index(f"### {record['name']}\n")
    assert (docs / "results" / f"shift_{record['name']}.png").stat().st_size > 10_000


def test_nothing_to_publish_and_nowhere_to(copy: Path, tmp_path: Path) -> None:
    config = load_config(copy)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "shift.md").write_text("# Shift\n", encoding="utf-8")
    with pytest.raises(DataError, match="one pair of markers"):
        publish_shift(config, docs)
    assert not (docs / "results").exists()
    (config.run_dir / "report" / "shift.json").unlink()
    with pytest.raises(ConfigError, match="run 'python -m training shift' without --publish first"):
        publish_shift(config, docs)


def test_the_documentations_page_is_what_its_json_says() -> None:
    page = (ROOT / "docs" / "shift.md").read_text(encoding="utf-8")
    published = published_shifts(ROOT / "docs" / "results")
    assert fill(page, "shift", page_section(published)) == page
    for record in published:
        assert (ROOT / "docs" / "results" / f"shift_{record['name']}.png").is_file()


# Every predictive.


def test_an_artifact_with_every_predictive_reports_them_all(
    tmp_path: Path, mixture_run: FinishedRun, mixture_predictor: Predictor
) -> None:
    """As ``predict`` gives each of them alone."""
    path = shift_config(tmp_path, mixture_run, rows=8, corruptions=[{"kind": "word_drop", "severity": 0.5}])
    assert job("shift", path) == 0
    config = load_config(path)
    record = report(config)
    names = ["map", "temperature", "conditioned", "fast", "fast_served", "laplace", "laplace_temperature"]
    names += ["laplace_conditioned", "ensemble", "ensemble_temperature", "laplace_ensemble", "mc_dropout"]
    assert list(record["sets"]["test"]["predictives"]) == names
    assert record["recommended"] == mixture_predictor.recommended
    test = load_splits(config.data, seed=config.seed).test[:8]
    rows = [mixture_predictor.encode(corrupt(e, "word_drop", 0.5, config.seed).fields, truncate=True) for e in test]
    kept = answered(config, "word_drop-0.5").predictives
    for name in mixture_predictor.predictives:
        alone = torch.tensor([a.probs for a in mixture_predictor.predict(rows, name)], dtype=torch.float64)
        # Float32, the same rows in one padded batch: the order of sums.
        torch.testing.assert_close(kept["fast_served" if name == "fast" else name].probs, alone, atol=1e-4, rtol=0)
    assert {name for name in names if kept[name].epistemic is None} == {"map", "temperature"}
