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
from tiny_runs import FinishedRun, choice_rows, reseal, sentiment_rows, write_rows

from laplora.decisions.uncertainty import FLAGS
from laplora.errors import ConfigError, DataError
from laplora.linearised import entropy
from laplora.metrics.detection import detection
from laplora.metrics.scores import evaluate_probs
from laplora.predictor import Predictor
from training import shift as shift_job
from training.__main__ import main
from training.config import RunConfig, ShiftConfig, config_hash_fields, load_config
from training.data.corruptions import corrupt
from training.data.section import load_splits
from training.report.evaluation import display_name
from training.report.markdown import fill
from training.report.shift import publish_shift, published_shifts
from training.report.shift_answers import SetAnswers, read_answers
from training.report.shift_tables import page_section, shift_figure, shift_tables, shown_predictives
from training.workspace.runtime import batches

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


def other_data(path: Path, **changes: Any) -> dict[str, Any]:
    fields = {"dataset": "file", "path": str(path), "template": "multiple_choice", "labels": ["A", "B", "C", "D"]}
    return fields | {"train": 8, "calibration": 4} | changes


def shift_config(folder: Path, run: FinishedRun, shift: dict[str, Any] | None, **changes: Any) -> Path:
    """Write the configuration of a finished run with a section shift; its results go below ``folder``."""
    sections = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
    sections |= {"runs": str(folder / "runs")} | ({} if shift is None else {"shift": shift}) | changes
    path = folder / "shift.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def job(path: Path, *arguments: str) -> int:
    return main(["shift", "--config", str(path), *arguments])


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Any:
    """A process that was started in the background ignores SIGINT, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, choices_run: FinishedRun) -> Path:
    """A configuration with one other data set and two corruptions, measured once."""
    folder = tmp_path_factory.mktemp("shift")
    data = other_data(other_questions(folder / "other.jsonl"))
    shift = {
        "rows": 10,
        "sets": {"other": data},
        "corruptions": [{"kind": "typos", "severity": 0.3}, {"kind": "choice_noise"}],
    }
    path = shift_config(folder, choices_run, shift)
    assert job(path) == 0
    return path


@pytest.fixture(scope="module")
def config(config_file: Path) -> RunConfig:
    return load_config(config_file)


@pytest.fixture(scope="module")
def record(config: RunConfig) -> dict[str, Any]:
    """The report as JSON."""
    found: dict[str, Any] = json.loads((config.run_dir / "report" / "shift.json").read_text(encoding="utf-8"))
    return found


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
    from safetensors import safe_open

    path = config.run_dir / "shift" / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        answers = read_answers(path, file.metadata()["made_from"])
    assert answers is not None
    return answers


# Which rows.


def test_every_set_is_there_in_order(record: dict[str, Any], config: RunConfig) -> None:
    kinds = {name: own["kind"] for name, own in record["sets"].items()}
    assert kinds == {
        "test": "in_distribution",
        "other": "shifted",
        "typos-0.3": "corrupted",
        "choice_noise-0.1": "corrupted",
    }
    assert list(kinds) == ["test", "other", "typos-0.3", "choice_noise-0.1"]
    splits = load_splits(config.data, seed=config.seed)
    assert [own["rows"] for own in record["sets"].values()] == [len(splits.test), 10, 10, 10]


def test_rows_that_the_artifact_cannot_take_or_has_seen_are_left_out_and_counted(
    record: dict[str, Any], config: RunConfig
) -> None:
    assert config.shift is not None
    data = config.shift.sets["other"]
    test = load_splits(data, seed=config.seed).test
    # The run's own rows begin with "Is a"; the others hold a number.
    four = [e for e in test if e.class_count == 4]
    own = [e for e in test if e.fields["question"].startswith("Is a") and e.class_count < 4]
    assert four
    assert own
    assert record["sets"]["other"]["left_out"] == {"choices": len(four), "repeated": len(own)}
    usable = [e for e in test if e not in four and e not in own][:10]
    assert answered(config, "other").labels.tolist() == [e.label for e in usable]


# What is measured.


def test_the_metrics_are_those_of_the_predictor(
    record: dict[str, Any], config: RunConfig, choices_predictor: Predictor
) -> None:
    """Against the predictor asked directly, row by row: bfloat16 rounds otherwise in batches of another length."""
    splits = load_splits(config.data, seed=config.seed)
    examples = [corrupt(e, "typos", 0.3, config.seed) for e in splits.test[:10]]
    rows = [choices_predictor.encode(e.fields, truncate=True) for e in examples]
    answers = [choices_predictor.predict([row])[0] for row in rows]
    name = record["recommended"]
    probs = torch.zeros(10, 3, dtype=torch.float64)
    for i, answer in enumerate(answers):
        probs[i, : len(answer.probs)] = torch.tensor(answer.probs, dtype=torch.float64)
    labels = torch.tensor([e.label for e in examples])
    own = record["sets"]["typos-0.3"]
    kept = answered(config, "typos-0.3")
    assert torch.equal(kept.labels, labels)
    torch.testing.assert_close(kept.predictives[name].probs, probs, atol=0.05, rtol=0)
    mass = torch.tensor([a.label_mass for a in answers], dtype=torch.float64)
    torch.testing.assert_close(kept.label_mass, mass, atol=0, rtol=0.1)
    assert own["predictives"][name]["nll"] == pytest.approx(evaluate_probs(probs, labels).nll, abs=0.05)


def test_the_test_rows_figures_are_those_of_evaluate(record: dict[str, Any], choices_run: FinishedRun) -> None:
    """The same rows in the same batches: what differs is the rounding of sums."""
    evaluated = json.loads((choices_run.config.run_dir / "report" / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("map", "laplace"):
        for metric in ("accuracy", "nll", "ece", "brier"):
            found = record["sets"]["test"]["predictives"][name][metric]
            assert found == pytest.approx(evaluated[name][metric], abs=2e-4), (name, metric)


def test_every_figure_follows_from_the_kept_answers(record: dict[str, Any], config: RunConfig) -> None:
    inside = answered(config, "test")
    for name, own in record["sets"].items():
        kept = answered(config, name)
        assert list(own["predictives"]) == list(kept.predictives) == list(inside.predictives)
        assert own["label_mass"] == pytest.approx(float(kept.label_mass.mean()), abs=1e-6)
        assert own["truncated"] == 0
        for predictive, values in own["predictives"].items():
            rows = kept.predictives[predictive]
            right = rows.probs.argmax(1) == kept.labels
            assert values["accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-6)
            assert values["review"] == pytest.approx(float(rows.review.double().mean()), abs=1e-6)
            assert values["accepted"] == int((~rows.review).sum())
            assert values["accepted_errors"] == int((~right & ~rows.review).sum())
            assert (values["epistemic"] is None) == (rows.epistemic is None) == (predictive in ("map", "temperature"))
            assert values["total_entropy"] == pytest.approx(float(entropy(rows.probs).mean()), abs=1e-6)
        assert kept.deferral is not None
        assert own["fast"]["handed_over"] == pytest.approx(float(kept.deferral[:, 0].double().mean()), abs=1e-6)
        assert own["fast"]["unfamiliar"] == pytest.approx(float(kept.deferral[:, 1].double().mean()), abs=1e-6)
        for predictive, share in own["fast"]["same_decision"].items():
            alike = kept.predictives[predictive].review == kept.predictives["laplace"].review
            assert share == pytest.approx(float(alike.double().mean()), abs=1e-6)
        if name == "test":
            assert own["detection"] == {}
            continue
        mass = detection(-inside.label_mass, -kept.label_mass)
        assert own["detection"]["label_mass"]["auroc"] == pytest.approx(mass.auroc, abs=1e-6)
        assert own["detection"]["label_mass"]["fpr_at_95_tpr"] == pytest.approx(mass.fpr_at_95_tpr, abs=1e-6)
        entropies = [entropy(a.predictives["map"].probs) for a in (inside, kept)]
        assert own["detection"]["map_entropy"]["auroc"] == pytest.approx(detection(*entropies).auroc, abs=1e-6)
        assert set(own["predictives"]["laplace"]["detection"]) == {"total_entropy", "confidence", "epistemic"}


def test_fast_as_served_is_laplace_where_it_defers(config: RunConfig, choices_predictor: Predictor) -> None:
    """As the predictor gives it, in the same batches."""
    examples = load_splits(config.data, seed=config.seed).test
    rows = [choices_predictor.encode(e.fields, truncate=True) for e in examples]
    kept = answered(config, "test")
    assert kept.deferral is not None
    assert kept.kernel_variance is not None
    assert bool((kept.deferral[:, 1] <= kept.deferral[:, 0]).all())
    own, exact, served = (kept.predictives[name].probs for name in ("fast", "laplace", "fast_served"))
    assert torch.equal(served, exact.where(kept.deferral[:, :1], own))
    for index in batches(rows, config.laplace.batch_size):
        for i, answer in zip(index, choices_predictor.predict([rows[i] for i in index], "fast"), strict=True):
            assert (answer.predictive == "laplace") == bool(kept.deferral[i, 0])


def test_what_is_unfamiliar_is_deferred(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    """Texts of another kind, which have no answer, and words of random letters; hardly any of the run's own rows."""
    stranger = {"data": other_data(other_questions(tmp_path / "other.jsonl")), "field": "question"}
    gibberish = {"kind": "gibberish", "severity": 1.0}
    path = shift_config(tmp_path, sentiment_run, {"strangers": {"questions": stranger}, "corruptions": [gibberish]})
    assert job(path) == 0
    config = load_config(path)
    record = json.loads((config.run_dir / "report" / "shift.json").read_text(encoding="utf-8"))
    sets = record["sets"]
    assert [own["kind"] for own in sets.values()] == ["in_distribution", "stranger", "corrupted"]
    questions = sets["questions"]
    assert questions["rows"] == len(answered(config, "questions").labels) == 48
    for values in questions["predictives"].values():
        assert [values[m] for m in ("accuracy", "nll", "ece", "accepted_errors")] == [None] * 4
        assert values["total_entropy"] > 0
    for name in ("questions", "gibberish-1"):
        assert sets[name]["fast"]["handed_over"] >= sets[name]["fast"]["unfamiliar"] > 0.5
        assert sets[name]["detection"]["kernel_variance"]["auroc"] > 0.8
    assert sets["test"]["fast"]["unfamiliar"] < 0.3
    text = shift_tables(record)
    assert text.count("| questions | 48 |") == 2  # entropies and what is deferred
    assert shift_figure(record).axes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field": "text"}, "its rows have the fields ['choices', 'question'], no text 'text'"),
        ({"field": "choices"}, "no text 'choices'"),
    ],
)
def test_strangers_without_the_text(
    sentiment_run: FinishedRun, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    stranger = {"data": other_data(other_questions(tmp_path / "other.jsonl"))} | changes
    assert message in refusal(shift_config(tmp_path, sentiment_run, {"strangers": {"questions": stranger}}))


def test_strangers_to_a_template_of_several_fields(choices_run: FinishedRun, tmp_path: Path) -> None:
    stranger = {"data": other_data(other_questions(tmp_path / "other.jsonl")), "field": "question"}
    message = refusal(shift_config(tmp_path, choices_run, {"strangers": {"questions": stranger}}))
    assert message.startswith(
        "shift.strangers.questions: the artifact's template has the fields ['choices', 'question']"
    )


def test_flags_and_decisions_are_the_services(config: RunConfig, choices_predictor: Predictor) -> None:
    """The recommended predictive in the same batches, so that rounding is the same and every flag must be."""
    examples = load_splits(config.data, seed=config.seed).test
    rows = [choices_predictor.encode(e.fields, truncate=True) for e in examples]
    kept = answered(config, "test").predictives["laplace"]
    for index in batches(rows, config.laplace.batch_size):
        for i, answer in zip(index, choices_predictor.predict([rows[i] for i in index]), strict=True):
            assert [flag for k, flag in enumerate(FLAGS) if kept.flags[i, k]] == answer.flags
            assert bool(kept.review[i]) == (answer.decision == "review")
            assert float(kept.score[i]) == answer.score
    assert kept.flags.any()


# What is kept.


def count_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which sets are answered."""
    titles: list[str] = []
    original = shift_job.answer_set

    def answer_set(predictor: Predictor, examples: Any, batch_size: int, title: str) -> SetAnswers:
        titles.append(title.split()[0])
        return original(predictor, examples, batch_size, title)

    monkeypatch.setattr(shift_job, "answer_set", answer_set)
    return titles


def test_a_measured_set_is_not_answered_again(
    copy: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the model is loaded; and the report is the same."""
    monkeypatch.setattr(Predictor, "load", lambda *_a, **_k: pytest.fail("nothing is left to answer"))
    assert job(copy) == 0
    again = json.loads((load_config(copy).run_dir / "report" / "shift.json").read_text(encoding="utf-8"))
    assert again == record


def test_a_stopped_job_continues_at_the_set_where_it_was(
    copy: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert job(copy) == 130
    titles = count_answers(monkeypatch)
    assert job(copy) == 0
    assert titles == ["typos-0.3", "choice_noise-0.1"]
    again = json.loads((load_config(copy).run_dir / "report" / "shift.json").read_text(encoding="utf-8"))
    assert again == record


def test_other_rows_and_damaged_files_are_answered_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = load_config(copy).run_dir / "shift"
    damaged = folder / "choice_noise-0.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    titles = count_answers(monkeypatch)
    assert job(copy, "--set", "shift.rows=11") == 0
    assert titles == ["other", "typos-0.3", "choice_noise-0.1"]  # the test rows are always all of them
    titles.clear()
    damaged.write_bytes(b"")
    assert job(copy, "--set", "shift.rows=11") == 0
    assert titles == ["choice_noise-0.1"]


def test_another_artifact_answers_everything_again(
    copy: Path, choices_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Path(shutil.copytree(choices_run.artifact, tmp_path / "artifacts" / choices_run.artifact.name))
    reseal(artifact, created="2030-01-01T00:00:00+00:00")
    titles = count_answers(monkeypatch)
    assert job(copy, "--set", f"artifacts={tmp_path / 'artifacts'}") == 0
    assert titles == ["test", "other", "typos-0.3", "choice_noise-0.1"]


# What is refused.


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        shift_job.shift(load_config(path, list(overrides)))
    return str(caught.value)


def test_a_configuration_without_the_section(tmp_path: Path, choices_run: FinishedRun) -> None:
    assert "tiny-choices has no section 'shift': name other" in refusal(shift_config(tmp_path, choices_run, None))


def test_no_artifact_yet(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(copy, "--set", f"artifacts={tmp_path / 'none'}") == 1
    assert "no artifact at 'tiny-choices'" in capsys.readouterr().err


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


def test_sets_that_the_artifact_cannot_be_asked(tmp_path: Path, choices_run: FinishedRun) -> None:
    reviews = write_rows(tmp_path / "reviews.jsonl", sentiment_rows())
    data = {
        "dataset": "file",
        "path": str(reviews),
        "template": "sentiment",
        "labels": ["negative", "positive"],
        "train": 4,
    }
    message = refusal(shift_config(tmp_path, choices_run, {"sets": {"reviews": data}}))
    assert message.startswith("shift.sets.reviews: its rows have the fields ['text'], the artifact's template")
    own = write_rows(tmp_path / "own.jsonl", choice_rows())
    message = refusal(shift_config(tmp_path, choices_run, {"sets": {"own": other_data(own)}}))
    assert "0 of its 60 test rows can be used (0 have a number of choices" in message
    assert "60 are among the run's rows" in message
    message = refusal(shift_config(tmp_path, choices_run, {"sets": {"none": other_data(tmp_path / "none.jsonl")}}))
    assert message.startswith("shift.sets.none: ")


def test_labels_that_mean_something_else(tmp_path: Path, sentiment_run: FinishedRun) -> None:
    rows = [{"text": row["text"] + "!", "label": row["label"][:3]} for row in sentiment_rows()]
    data = {
        "dataset": "file",
        "path": str(write_rows(tmp_path / "turned.jsonl", rows)),
        "template": "sentiment",
        "labels": ["pos", "neg"],
        "train": 4,
    }
    message = refusal(shift_config(tmp_path, sentiment_run, {"sets": {"turned": data}}))
    assert message == (
        "shift.sets.turned: its labels are ['pos', 'neg'], the artifact answers ['negative', 'positive']"
    )


def test_noise_in_choices_needs_choices(tmp_path: Path, sentiment_run: FinishedRun) -> None:
    path = shift_config(tmp_path, sentiment_run, {"corruptions": [{"kind": "choice_noise"}]})
    assert "choice_noise needs a data set with choices" in refusal(path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "name at least one set, stranger or corruption"),
        ({"sets": {"test": {"dataset": "arc_easy"}}}, "'test': each set and corruption needs its name"),
        ({"sets": {"a/b": {"dataset": "arc_easy"}}}, "'a/b': each set"),
        ({"corruptions": [{"kind": "typos"}, {"kind": "typos", "severity": 0.1}]}, "'typos-0.1': each set"),
        ({"sets": {"typos-0.1": {"dataset": "arc_easy"}}, "corruptions": [{"kind": "typos"}]}, "'typos-0.1': each"),
        ({"corruptions": [{"kind": "blur"}]}, "Input should be 'typos'"),
        ({"corruptions": [{"kind": "typos", "severity": 0}]}, "greater than 0"),
        ({"sets": {"a": {"dataset": "mmlu"}}}, "dataset mmlu needs subjects"),
        ({"rows": 1, "corruptions": [{"kind": "typos"}]}, "greater than or equal to 2"),
    ],
)
def test_sections_that_cannot_be(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShiftConfig.model_validate(section)


def test_the_section_does_not_change_what_a_run_makes(config: RunConfig, choices_run: FinishedRun) -> None:
    assert config.shift is not None
    assert config_hash_fields(config) == config_hash_fields(choices_run.config)


# The report and the page.


def test_the_tables_hold_the_records_figures(record: dict[str, Any]) -> None:
    text = shift_tables(record)
    for name, own in record["sets"].items():
        lines = [row for row in text.splitlines() if row.startswith(f"| {'test rows' if name == 'test' else name} ")]
        for metric, line in zip(("accuracy", "nll", "ece", "total_entropy"), lines, strict=False):
            assert f"| {own['rows']} |" in line
            assert len(own["predictives"]) == len(line.split("|")) - 4
            for values in own["predictives"].values():
                assert f"{values[metric]:.3f}" in line
        if name != "test":
            assert f"{own['detection']['label_mass']['auroc']:.3f}" in text
    for title in ("Accuracy", "NLL", "ECE", "Mean entropy"):
        assert f"{title}, MAP" in text
        assert f"{title}, fast as served" in text
    assert f"recommended predictive: {display_name(record['recommended'])}" in text
    assert "other: " in text
    assert "left out: " in text


def test_the_best_of_a_row_is_bold_and_nothing_accepted_is_a_dash(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    other = changed["sets"]["other"]
    names = list(other["predictives"])
    for i, name in enumerate(names):
        other["predictives"][name] |= {"nll": 1.0 + i, "ece": 0.9 - 0.1 * i, "accepted": 0, "accepted_errors": 0}
    losses = ["**1.000**", *(f"{1 + i:.3f}" for i in range(1, len(names)))]
    gaps = [*(f"{0.9 - 0.1 * i:.3f}" for i in range(len(names) - 1)), f"**{0.9 - 0.1 * (len(names) - 1):.3f}**"]
    _, nll, ece, _, operation = [row for row in shift_tables(changed).splitlines() if row.startswith("| other ")][:5]
    assert nll.endswith(f"| {' | '.join(losses)} |")
    assert ece.endswith(f"| {' | '.join(gaps)} |")
    assert operation.endswith("| 0 | - |")


def test_the_report_is_written_whole(config: RunConfig, record: dict[str, Any]) -> None:
    folder = config.run_dir / "report"
    assert (folder / "shift.md").read_text(encoding="utf-8").endswith(shift_tables(record))
    with Image.open(folder / "shift.png") as picture:
        picture.load()
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 8  # an empty canvas has one
    left, right = shift_figure(record).axes
    assert [text.get_text() for text in left.get_yticklabels()] == [
        "test rows" if name == "test" else name for name in record["sets"]
    ]
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
    monkeypatch.chdir(tmp_path)
    assert job(config_file, "--publish") == 0
    published = json.loads((docs / "results" / f"shift_{record['name']}.json").read_text(encoding="utf-8"))
    assert published == record
    page = (docs / "shift.md").read_text(encoding="utf-8")
    assert shift_tables(published) in page
    assert fill(page, "shift", page_section([published])) == page
    assert "No figures are published yet" not in page
    assert (docs / "results" / f"shift_{record['name']}.png").stat().st_size > 10_000
    (docs / "results" / "shift_another.json").write_text(json.dumps(record | {"name": "another"}), encoding="utf-8")
    assert job(config_file, "--publish") == 0
    both = (docs / "shift.md").read_text(encoding="utf-8")
    assert [r["name"] for r in published_shifts(docs / "results")] == sorted(["another", record["name"]])
    assert "### another\n" in both
    assert f"### {record['name']}\n" in both


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


def test_an_artifact_with_every_predictive_reports_them_all_from_the_same_passes(
    tmp_path: Path, mixture_run: FinishedRun, mixture_predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``predict`` gives each of them alone; and the model runs no more often than its members need."""
    path = shift_config(tmp_path, mixture_run, {"rows": 8, "corruptions": [{"kind": "word_drop", "severity": 0.5}]})
    assert job(path) == 0
    config = load_config(path)
    record = json.loads((config.run_dir / "report" / "shift.json").read_text(encoding="utf-8"))
    names = ["map", "temperature", "fast", "laplace", "laplace_temperature"]
    names += ["ensemble", "ensemble_temperature", "laplace_ensemble", "mc_dropout"]
    found = list(record["sets"]["test"]["predictives"])
    assert [name for name in found if name != "fast_served"] == names
    assert found.index("fast_served") == found.index("fast") + 1
    assert record["recommended"] == mixture_predictor.recommended
    test = load_splits(config.data, seed=config.seed).test[:8]
    rows = [mixture_predictor.encode(corrupt(e, "word_drop", 0.5, config.seed).fields, truncate=True) for e in test]
    kept = answered(config, "word_drop-0.5").predictives
    for name in names:
        place = "fast_served" if name == "fast" else name
        alone = torch.tensor([a.probs for a in mixture_predictor.predict(rows, name)], dtype=torch.float64)
        # Float32, the same rows in one padded batch: the order of sums.
        torch.testing.assert_close(kept[place].probs, alone, atol=1e-4, rtol=0)
    spread = {name for name in names if kept[name].epistemic is not None}
    assert spread == set(names) - {"map", "temperature"}
