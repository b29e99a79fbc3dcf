"""``python -m training fit --adapter`` of a classification head, as PEFT saved it: the answers of ``laplora.fit``."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from head_artifacts import save_base
from peft import PeftModel
from tiny_classifiers import adapted_classifier, classifier_base
from tiny_runs import write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import laplora
from laplora.artifact.folder import read_artifact
from laplora.artifact.readout_records import ClassificationHeadRecord
from laplora.predictor import Predictor
from laplora.settings import FitSettings
from training.__main__ import main

LABELS = ["down", "up", "flat"]
NAMED = ["--labels", *LABELS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of tiny models go to a folder of their own."""
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, kind: str, *, lora: dict[str, Any] | None = None, **config: Any) -> tuple[Path, Path]:
    """Return the folders of a base without a head of its own, and of an adapter with one, as PEFT writes them."""
    whole = classifier_base(kind)
    for name, value in config.items():
        setattr(whole.config, name, value)
    base = save_base(folder / "base", whole, head=kind == "modernbert")
    model = adapted_classifier(kind, dtype=torch.float32, lora=lora)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


def rows(count: int, seed: int, *, several: bool = False) -> list[dict[str, Any]]:
    """Return random rows of letters, with one label or a list of them."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    for number in range(count):
        text = " ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 14)))
        label: Any = [name for name in LABELS if draw.random() < 0.4] if several else LABELS[number % 3]
        made.append({"text": text, "label": label})
    return made


def fit(adapter: Path, data: Path, out: Path, *more: str) -> int:
    """Run the job on a CPU, in float32."""
    options = ["--set=laplace.joint_rank=12", "--dtype", "float32", "--device", "cpu"]
    options += ["--template", "{text}", "--max-tokens", "12", "--adapter", str(adapter), "--data", str(data)]
    return main(["fit", *options, "--out", str(out), *more])


@pytest.mark.parametrize(
    ("kind", "several", "told"),
    [("llama", False, True), ("roberta", False, False), ("modernbert", True, True), ("roberta", True, False)],
)
def test_it_answers_as_the_fit_in_memory(tmp_path: Path, kind: str, several: bool, told: bool) -> None:
    """Labels and kind of task are the saved configuration's (told), or the command's and those of the rows."""
    config: dict[str, Any] = {"problem_type": "multi_label_classification"} if several else {}
    named: dict[str, Any] = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    base, adapter = saved(tmp_path, kind, **(named | config if told else {}))
    parts = [rows(40, 1, several=several), rows(30, 2, several=several)]
    tested = rows(20, 4, several=several)
    data, calibration, test = (write_rows(tmp_path / f"{i}.jsonl", part) for i, part in enumerate([*parts, tested]))
    more = ["--calibration", str(calibration), "--test", str(test), *([] if told else NAMED)]
    assert fit(adapter, data, tmp_path / "artifact", *more) == 0
    manifest = read_artifact(tmp_path / "artifact").manifest
    page = (tmp_path / "artifact" / "report" / "report.html").read_text(encoding="utf-8")
    assert "20 rows of 2.jsonl, given as test rows" in page
    # Where several labels may be right, each label of a row is one of the page's own.
    sizes = re.findall(r'<th scope="row"><bdi>(\w+)</bdi></th><td[^>]*>(\d+)</td>', page.split('id="labels"')[1])
    wanted = {name: 20 for name in LABELS} if several else dict(Counter(row["label"] for row in tested))
    assert wanted.items() <= {name: int(size) for name, size in sizes}.items()
    record = manifest.readout
    assert isinstance(record, ClassificationHeadRecord)
    assert manifest.labels == tuple(LABELS)
    assert record.likelihood == ("bernoulli" if several else "categorical")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32, **config)
    classifier = laplora.Classifier(
        PeftModel.from_pretrained(model, adapter), AutoTokenizer.from_pretrained(base), "{text}", LABELS, max_tokens=12
    )
    settings = FitSettings.model_validate({"laplace": {"joint_rank": 12}})
    posterior = laplora.fit(classifier, *parts, settings=settings, progress=False)
    predictor = Predictor.load(tmp_path / "artifact", device="cpu")
    inputs = [{"text": row["text"]} for row in rows(6, 3)]
    answers = predictor.predict([predictor.encode(one, truncate=True) for one in inputs], "laplace")
    for mine, other in zip(answers, posterior.predict(inputs, "laplace"), strict=True):
        assert mine.probs == pytest.approx(other.probs, abs=1e-6)
        assert mine.logit_variance == pytest.approx(other.logit_variance, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ({}, ["--labels", "down", "up"], "--labels names 2 labels, the head has 3 classes"),
        ({}, [], r"does not name the 3 outputs of its head \(id2label\).*name them by --labels"),
        ({"id2label": dict(enumerate(LABELS[::-1]))}, NAMED, r"outputs are \['flat', 'up', 'down'\] \(config"),
        ({"problem_type": "multi_label_classification"}, NAMED, "must be a list of labels"),
        ({}, [*NAMED, "--base", "wide"], "does not load on this base"),
        ({"lora": None}, NAMED, "is not in the base's checkpoint and was not saved with the head"),
        ({}, [*NAMED, "--task-type", "CAUSAL_LM"], "the adapter says that it is of SEQ_CLS, --task-type is CAUSAL_LM"),
    ],
)
def test_what_cannot_be_fitted(
    config: dict[str, Any], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = {"modules_to_save": None, "task_type": None} if "lora" in config else None
    _, adapter = saved(tmp_path, "llama", lora=lora, **{k: v for k, v in config.items() if k != "lora"})
    if "wide" in more:
        wide = save_base(tmp_path / "wide", classifier_base("llama", hidden_size=32), head=False)
        more = [*more[:-1], str(wide)]
    data = write_rows(tmp_path / "rows.jsonl", rows(30, 1))
    assert fit(adapter, data, tmp_path / "artifact", "--calibration", "split", *more) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "artifact").exists()
