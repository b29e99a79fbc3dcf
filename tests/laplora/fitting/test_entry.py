"""Five lines from a fine-tuned model to calibrated answers: the same artifact as the jobs', and what is refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from peft import PeftModel
from telling import assert_served_as_fitted
from tiny_runs import FinishedRun
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.artifact.folder import read_artifact
from laplora.errors import ConfigError, DataError, LabelTokenError, LaploraWarning, ModelError, NonFiniteError
from laplora.fitting import evaluation
from laplora.fitting.entry import _warn_of_little_mass
from laplora.fitting.rows import read_rows, split_rows, without_twins
from laplora.models.quiet import quiet_loading
from training.workspace.runtime import open_run

#: The jobs' artifact is compared to the bit.
FINE_SEARCHES = True
Rows = list[dict[str, Any]]
REVIEW = {"id": "a", "text": "a", "label": 0}


def load(run: FinishedRun) -> tuple[Any, Any]:
    """Return the run's model and tokenizer, as a user of transformers and peft loads them."""
    base = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.float32)
    with quiet_loading():  # peft warns of a tied lm_head
        model = PeftModel.from_pretrained(base, str(run.config.run_dir / "adapter"))
    return model, AutoTokenizer.from_pretrained(run.base)


def rows_of(run: FinishedRun) -> dict[str, Rows]:
    """Return each split's rows as a user has them."""
    splits = open_run(run.config).splits
    labels = splits.task.labels
    return {
        name: [{"id": e.id, **e.fields, "label": labels[e.label]} for e in getattr(splits, name)]
        for name in ("train", "calibration", "test")
    }


def named_classes(*names: str) -> Features:
    """Return the features of reviews in a data set that calls its classes so."""
    return Features({"id": Value("string"), "text": Value("string"), "label": ClassLabel(names=list(names))})


@pytest.fixture(scope="module")
def posterior(
    sentiment_run: FinishedRun, classifier: laplora.Classifier, rows: dict[str, Rows]
) -> laplora.CalibratedPosterior:
    return laplora.fit(
        classifier,
        iter(rows["train"]),
        rows["calibration"],
        settings=sentiment_run.config.fit,
        initial_adapter=sentiment_run.config.run_dir / "initial_adapter",
        progress=False,
    )


@pytest.fixture(scope="module")
def saved(
    posterior: laplora.CalibratedPosterior, rows: dict[str, Rows], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    posterior.evaluate(rows["test"])
    return posterior.save(tmp_path_factory.mktemp("artifacts") / "tiny-sentiment")


def test_the_artifact_is_that_of_the_jobs(saved: Path, sentiment_run: FinishedRun) -> None:
    """Every tensor to the bit, and every field of the manifest that is not about how the run was called."""
    mine, jobs = read_artifact(saved).manifest, read_artifact(sentiment_run.artifact).manifest
    for name in ("posterior.safetensors", "scores.safetensors", "familiarity.safetensors"):
        assert mine.files[name] == jobs.files[name], name
    assert mine.files["adapter/adapter_model.safetensors"] == jobs.files["adapter/adapter_model.safetensors"]
    about_the_call = {"created", "config", "data", "metrics", "files", "question"}
    one, other = (m.model_dump(mode="json", exclude=about_the_call) for m in (mine, jobs))
    assert one == other
    for predictive in mine.predictives:
        # None without a mistake to rank; the jobs read float32 factors
        measured, theirs = ({k: v for k, v in m.metrics[predictive].items() if v is not None} for m in (mine, jobs))
        assert measured == pytest.approx(theirs, rel=1e-6)
    recorded, again = (json.loads((folder / "golden.json").read_text()) for folder in (saved, sentiment_run.artifact))
    assert recorded == again


def test_no_text_of_a_row_is_saved_that_the_user_does_not_give(
    posterior: laplora.CalibratedPosterior, rows: dict[str, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(posterior._progress, "say", lines.append)
    given = {"text": "Mine."}
    recorded = {}
    for name, asked in (("none", None), ("mine", [given]), ("rows", "calibration")):
        folder = posterior.save(tmp_path / name, verify=False, golden_inputs=asked)
        golden = json.loads((folder / "golden.json").read_text())
        recorded[name] = golden["source"], [answer["inputs"]["text"] for answer in golden["answers"]]
    assert recorded == {
        "none": ("synthetic", ["A text about negative.", "A text about positive."]),
        "mine": ("given", ["Mine."]),
        "rows": ("calibration", [row["text"] for row in rows["calibration"][:4]]),
    }
    said = [line for line in lines if line.startswith("artifact: ")]
    texts = ("no text of a row", "the texts of the 1 golden inputs that were given", "THE TEXTS OF 4 CALIBRATION ROWS")
    assert [text in line for text, line in zip(texts, said, strict=True)] == [True] * 3
    with pytest.raises(ConfigError, match=r"golden_inputs\.0: inputs have the fields \['text'\]"):
        posterior.save(tmp_path / "other", golden_inputs=[{"txet": "x"}])


def test_what_is_served_is_what_the_posterior_answers(
    saved: Path, posterior: laplora.CalibratedPosterior, rows: dict[str, Rows], tmp_path: Path
) -> None:
    """Also of an artifact whose golden answers are those in memory, which whoever loads it replays."""
    inputs = [{"text": row["text"]} for row in rows["test"][:9]]
    for folder in (saved, posterior.save(tmp_path / "tiny-sentiment", verify=False)):
        assert_served_as_fitted(posterior, folder, inputs, posterior.predictives)
    (answer,) = posterior.predict(inputs[0])
    assert [answer] == posterior.predict(inputs[:1]) == posterior.predict(inputs[0]["text"])
    assert answer.label == answer.labels[answer.label_index]
    assert posterior.predict([]) == posterior.predict(pd.DataFrame(inputs[:0])) == []
    with pytest.raises(DataError, match="an iterator can be used once only"):
        posterior.predict(iter([]))


def test_what_is_loaded_has_the_calls_of_what_was_fitted(
    saved: Path, posterior: laplora.CalibratedPosterior, rows: dict[str, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, texts = laplora.load(saved, device="cpu", progress=False), [row["text"] for row in rows["test"]]
    assert isinstance(loaded, laplora.CalibratedPosterior)
    assert (loaded.predictives, loaded.recommended) == (posterior.predictives, posterior.recommended)
    probs = loaded.predict_proba(texts)
    assert probs == pytest.approx(posterior.predict_proba(rows["test"]), abs=1e-5)
    assert [list(answer.probs.values()) for answer in loaded.predict(texts)] == probs.tolist()
    assert loaded.predict(texts[0], covariance=True, predictive="laplace")[0].logit_covariance.shape == (2, 2)
    one, other = (found.suggest(texts, 3).reasons() for found in (loaded, posterior))
    assert [row["row"] for row in one] == [row["row"] for row in other]
    expected = posterior.evaluate(rows["test"]).to_json()
    monkeypatch.setattr(evaluation, "_BATCH", 5)
    for name, metrics in loaded.evaluate(rows["test"]).to_json().items():
        assert metrics["nll"] == pytest.approx(expected[name]["nll"], abs=1e-5)
        assert metrics["sets"]["coverage"] == expected[name]["sets"]["coverage"]
    again = loaded.save(saved.parent / "again", report="<html>")
    assert laplora.load(again, device="cpu", progress=False).predict_proba(texts).tolist() == probs.tolist()
    assert (again / "report/report.html").read_text() == "<html>"
    with pytest.raises(AttributeError, match="a loaded posterior has no fit"):
        _ = loaded.fit
    with pytest.raises(ConfigError, match="keeps base model and golden inputs of its artifact"):
        loaded.save(saved, base="elsewhere")


def test_an_evaluation_prints_a_table(posterior: laplora.CalibratedPosterior, rows: dict[str, Rows]) -> None:
    measured = posterior.evaluate(pd.DataFrame(rows["test"]))
    lines = str(measured).splitlines()
    assert lines[0].split() == ["accuracy", "nll", "ece", "brier", "auroc_error", "coverage", "set", "size"]
    below = next(number for number, line in enumerate(lines) if line.startswith("24 rows"))
    assert [line.split()[0] for line in lines[1:below]] == list(posterior.predictives)
    assert lines[below + 1 :] == ([str(measured.gain)] if measured.gain else [])
    assert (measured.gain is None) == (measured.recommended == "temperature")
    assert measured["map"].rows == 24


def test_rows_of_every_kind_are_the_same_rows(classifier: laplora.Classifier, rows: dict[str, Rows]) -> None:
    numbered = [row | {"label": int(row["label"] == "positive")} for row in rows["test"]]
    named = Dataset.from_list(numbered, features=named_classes("negative", "positive"))
    other_way = [row | {"label": 1 - row["label"]} for row in numbered]
    turned = Dataset.from_list(other_way, features=named_classes("positive", "negative"))
    expected = read_rows(rows["test"], classifier, "label")
    frame = pd.DataFrame(numbered)
    floats = frame.astype({"label": float})  # as of a column with a gap
    for given in (numbered, iter(numbered), named, turned, frame, frame.astype({"label": "int32"}), floats):
        assert read_rows(given, classifier, "label") == expected


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, without(rows[0], "text")], "row 40: field 'text' is missing"),
        (
            lambda rows: [*rows, without(rows[0], "label") | {"target": 1}],
            r"row 40: field 'label' \(the label\) is missing; the row has \[.*'target'.*give it as label_field",
        ),
        (lambda rows: [rows[0] | {"label": "meh"}], r"row 0: field 'label' is 'meh', expected one of"),
        (lambda rows: [rows[0] | {"label": 2}], "the label is 2, expected a number from 0 to 1, or one of"),
        (lambda rows: [rows[0] | {"label": 0.5}], r"field 'label' is '0.5', expected one of"),
        (lambda rows: DatasetDict(train=Dataset.from_list(rows)), "got DatasetDict: choose one of its splits"),
        (lambda rows: [row for row in rows if row["label"] == "positive"], r"no row has the labels \['negative'\]"),
        (lambda rows: [rows[0], {"prompt": "Review:", "label": "positive"}], "some rows have a finished 'prompt'"),
        (lambda rows: [], "there are no rows"),
        (lambda rows: ["a text"], r"row 0 must be a dict of the template's fields \['text'\], got str"),
        (lambda rows: rows[0], r"must be a list of dicts of the template's fields \['text'\]"),
        (lambda rows: pd.DataFrame(rows).assign(text=float("nan")), "field 'text' is null or nan: leave the row out"),
        (lambda _: Dataset.from_list([REVIEW], features=named_classes("neg", "pos")), r"its classes \['neg', 'pos'\]"),
    ],
)
def test_rows_that_cannot_be_used(
    change: Any, message: str, classifier: laplora.Classifier, rows: dict[str, Rows]
) -> None:
    with pytest.raises(DataError, match=message):
        laplora.fit(classifier, change(rows["train"]), rows["calibration"], progress=False)
    with pytest.raises(ConfigError, match=r"must be a laplora\.Classifier, got PeftModel"):
        laplora.fit(classifier.model, rows["train"])
    unfit = laplora.FitSettings.model_validate({"question": {"type": "noul", "yes_label": "yes"}})
    with pytest.raises(ConfigError, match="question: a noul has two labels"):
        laplora.fit(classifier, change(rows["train"]), settings=unfit)


def test_calibration_rows_are_given_or_said_to_be_unseen(
    classifier: laplora.Classifier, rows: dict[str, Rows], tmp_path: Path
) -> None:
    """A share of the training rows, by label and seed and in whole groups, where they are said to be unseen."""
    with pytest.raises(ConfigError, match=r"there are no calibration rows: .* calibration='split'"):
        laplora.fit(classifier, rows["train"], progress=False)
    for wrong in ("spilt", 1.5, 0):
        with pytest.raises(ConfigError, match="calibration must be rows, 'split' or a share between 0 and 1"):
            laplora.fit(classifier, rows["train"], wrong, progress=False)
    examples = read_rows(rows["train"], classifier, "label")
    train, calibration = split_rows(examples, 0)
    assert {e.id for e in (*train, *calibration)} == {e.id for e in examples}
    assert abs(sum(e.label for e in calibration) / 8 - sum(e.label for e in examples) / 40) < 0.1
    assert split_rows(examples, 1) != (train, calibration)
    for few, share in ((examples[:3], 0.2), (examples, 0.999)):
        with pytest.raises(DataError, match="too few"):
            split_rows(few, 0, share=share)
    threads = [{**row, "thread": number // 4} for number, row in enumerate(rows["train"])]
    with pytest.warns(LaploraWarning) as told:
        posterior = laplora.fit(classifier, threads, "split", groups="thread", progress=False)
    assert {warning.filename for warning in told} == {__file__}
    assert any("8 calibration rows are fewer than 20" in str(warning.message) for warning in told)
    assert any("8 of 40 rows calibrate. That the model" in str(warning.message) for warning in told)
    assert posterior.data["rows"] == {"train": 32, "calibration": 8}
    nothing = f"{posterior.recommended} accepts nothing at an error rate of 5 %: every answer goes to review"
    assert any(nothing in str(warning.message) for warning in told)
    assert posterior.fit.calibration.input_groups.tolist() == [0] * 4 + [1] * 4
    assert posterior.fit.calibrated.calibration.folds == 2
    manifest = read_artifact(posterior.save(tmp_path / "split", verify=False)).manifest
    assert manifest.prior.centre == "zero"
    assert manifest.data["calibration"] == "split"
    bound = laplora.FitSettings.model_validate({"calibration": {"guarantee": "upper_bound"}})
    with pytest.raises(ConfigError, match="calibration rows of a group err together"):
        laplora.fit(classifier, threads, "split", groups="thread", settings=bound, progress=False)


def test_training_rows_that_calibrate_too_and_a_prompt_that_no_label_follows_are_told_of(
    classifier: laplora.Classifier, rows: dict[str, Rows]
) -> None:
    train, calibration = (read_rows(rows[name], classifier, "label") for name in ("train", "calibration"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert without_twins(classifier, train, calibration) == (train, 0)
        _warn_of_little_mass(torch.tensor([0.5, 0.02, 0.001]))
    again = [replace(train[0], id="again", label=1 - train[0].label), replace(calibration[0], group="thread")]
    with pytest.warns(LaploraWarning) as told:
        kept, dropped = without_twins(classifier, [*train[:-1], replace(train[-1], group="thread")], again)
    assert (kept, dropped) == (train[1:-1], 2)
    assert ["2 training rows have" in str(told[0].message), "1 rows repeat" in str(told[1].message)] == [True, True]
    with pytest.warns(LaploraWarning, match="24 training rows .* surer of 24 of 24 calibration rows"):
        posterior = laplora.fit(classifier, rows["train"], rows["train"][:24], progress=False)
    assert posterior.data["rows"] == {"train": 16, "calibration": 24}
    assert posterior.data["twins_dropped"] == 24
    with pytest.raises(DataError, match="every training row has the prompt"):
        laplora.fit(classifier, rows["train"][:20], rows["train"][:24], progress=False)
    with pytest.warns(LaploraWarning, match=r"0\.002 of the probability"):
        _warn_of_little_mass(torch.tensor([0.5, 0.002, 0.001]))


def with_nan(model: Any) -> Any:
    model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.data[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": ["positive", "positive"]}, ConfigError, "two different names"),
        ({"labels": "positive"}, ConfigError, "a list of names"),
        ({"labels": {0: " a", 1: " b"}}, ConfigError, "labels must be names, as texts, got int"),
        ({"readout": "tokens"}, ConfigError, r"readout must be one of \['label_tokens', 'label_sequences'\]"),
        ({"model": lambda _: "a folder"}, ModelError, "must be one that from_pretrained returned, got str"),
        ({"labels": {"good": " positive", "bad": " positive"}}, LabelTokenError, "collide"),
        ({"template": "no placeholder"}, ConfigError, "no {field} placeholder"),
        ({"template": ["a", "b"]}, ConfigError, "got list: the order is model, tokenizer, template, labels"),
        ({"model": lambda model: torch.compile(model, backend="eager")}, ModelError, "before torch.compile"),
        ({"model": torch.nn.DataParallel}, ModelError, "wrapped in DataParallel"),
        ({"model": with_nan}, NonFiniteError, "NaN or infinity in .*q_proj"),
    ],
)
def test_what_no_classifier_can_be_made_of(
    changes: dict[str, Any], error: type[Exception], message: str, sentiment_run: FinishedRun
) -> None:
    model, tokenizer = load(sentiment_run)
    given: dict[str, Any] = {"labels": ["a", "b"], "template": "{text}:"} | changes
    change = given.pop("model", lambda model: model)
    with pytest.raises(error, match=message):
        laplora.Classifier(change(model), tokenizer, **given)


def test_a_base_that_no_artifact_could_load_again_is_not_saved(
    posterior: laplora.CalibratedPosterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posterior.classifier.model.get_base_model().config, "_name_or_path", "")
    with pytest.raises(ModelError, match="not loaded from a folder or the hub"):
        posterior.save(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
