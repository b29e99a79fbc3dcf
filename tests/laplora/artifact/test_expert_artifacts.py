"""Artifacts of heads on a model as it is: what is served is what memory answers, and what a damaged one says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_artifacts import letter_rows, letters
from safetensors.torch import load_file, save_file
from test_heads import QUESTION, question_rows
from tiny_classifiers import _BERT
from tiny_models import tiny_base
from tiny_runs import reseal
from tiny_sentence_encoder import sentence_encoder_folder
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel

import laplora
from laplora.artifact.folder import read_artifact
from laplora.artifact.head_files import read_experts, read_kept_rows
from laplora.artifact.manifest import EXPERTS, POSTERIOR, ROWS, parse_manifest
from laplora.encoder import Encoder
from laplora.errors import ArtifactCorruptError, ArtifactIncompatibleError, ConfigError, DataError, LaploraWarning
from laplora.pool.weights import pooled
from laplora.predictor import Predictor

LABELS = {"no": " w1", "yes": " w2"}
Rows = list[dict[str, Any]]


def of_words(folder: Path, **experts: Any) -> laplora.HeadsPosterior:
    """Return heads on a tiny decoder that lies in a folder."""
    tokenizer = letters("[CLS] $A")
    tiny_base("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = laplora.Classifier(model, tokenizer, "{text} z", LABELS, max_tokens=16)
    settings = laplora.FitSettings.model_validate({"experts": {"names": ["frozen"]} | experts})
    found = laplora.fit(given, letter_rows(60), settings=settings, progress=False)
    assert isinstance(found, laplora.HeadsPosterior)
    return found


def with_encoder(folder: Path) -> laplora.HeadsPosterior:
    encoder = sentence_encoder_folder(folder.parent / "encoder", letters("[CLS] $A [SEP]"))
    return of_words(folder, names=["frozen", "encoder"], encoder=str(encoder))


def of_options(folder: Path) -> laplora.HeadsPosterior:
    tokenizer = tiny_tokenizer()
    base = tiny_base("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = laplora.Classifier(model, tokenizer, QUESTION, ["A", "B", "C"], max_tokens=64)
    found = laplora.fit(given, question_rows(), progress=False)
    assert isinstance(found, laplora.HeadsPosterior)
    return found


def of_no_answer(folder: Path) -> laplora.HeadsPosterior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(initializer_range=0.3, **_BERT)).save_pretrained(folder)
    tokenizer = letters("[CLS] $A [SEP]")
    tokenizer.save_pretrained(folder)
    given = laplora.Classifier(AutoModel.from_pretrained(folder), tokenizer, "{text} z", LABELS, max_tokens=16)
    settings = laplora.FitSettings.model_validate({"experts": {"names": ["frozen"]}})
    found = laplora.fit(given, letter_rows(40), settings=settings, progress=False)
    assert isinstance(found, laplora.HeadsPosterior)
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what moves the cache of the hashes of base models to a folder of the test."""
    return lambda: monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("make", "served"),
    [
        (of_words, ("map", "frozen")),
        (with_encoder, ("map", "frozen", "encoder", "pooled")),
        pytest.param(of_options, ("map", "options"), marks=pytest.mark.real),
        (of_no_answer, ("frozen",)),
    ],
)
def test_what_is_loaded_answers_as_memory_does(
    make: Callable[[Path], laplora.HeadsPosterior], served: tuple[str, ...], tmp_path: Path, cache: Callable[[], None]
) -> None:
    posterior = make(tmp_path / "base")
    cache()
    assert posterior.predictives == served
    folder = posterior.save(tmp_path / "heads")
    manifest = read_artifact(folder).manifest
    assert manifest.prior is None
    assert not (folder / POSTERIOR).exists()
    assert not (folder / "adapter").exists()
    assert {EXPERTS, ROWS} <= set(manifest.files)
    loaded = laplora.load(folder, progress=False)
    assert loaded.predictives == served
    assert loaded.recommended == posterior.recommended
    rows = [{name: one.fields[name] for name in one.fields if name != "label"} for one in posterior.rows[:9]]
    for name in served:
        for mine, theirs in zip(posterior.predict(rows, name), loaded.predict(rows, name), strict=True):
            assert mine.predictive == theirs.predictive == name
            assert mine.label_mass is theirs.label_mass is None
            assert mine.familiarity == pytest.approx(theirs.familiarity, abs=0.06)
            assert mine.flags == theirs.flags
            for part in ("probs", "map_probs", "probs_std"):
                one, other = getattr(mine.arrays, part), getattr(theirs.arrays, part)
                assert (one is None) == (other is None)
                if one is not None:
                    np.testing.assert_allclose(one, other, atol=2e-5)
            assert (mine.arrays.map_probs is None) == ("map" not in served)
            assert (mine.arrays.probs_std is None) == (name == "map")
    with pytest.raises(ConfigError, match="no predictive 'laplace'"):
        loaded.predict(rows, "laplace")
    encoder = Encoder.of_folder(folder)  # needs no weights of either model
    assert encoder.encode(rows[0], truncate=True) == loaded.predictor.encode(rows[0], truncate=True)
    again = loaded.save(tmp_path / "copy")
    assert read_artifact(again).manifest.experts == manifest.experts
    found = loaded.suggest(rows, 3)
    assert [one.gain for one in found.rows] == sorted((one.gain for one in found.rows), reverse=True)
    assert found.rows[0].gain == max(one.epistemic or one.total for one in loaded.predict(rows))
    labels = [posterior.classifier.labels[one.label] for one in posterior.rows[:9]]
    measured = posterior.evaluate([row | {"label": label} for row, label in zip(rows, labels, strict=True)])
    assert tuple(measured.evaluations) == served


def test_rows_can_stay_out_of_an_artifact(tmp_path: Path, cache: Callable[[], None]) -> None:
    cache()
    folder = of_words(tmp_path / "base", keep_rows=False).save(tmp_path / "heads")
    assert ROWS not in read_artifact(folder).manifest.files
    assert laplora.load(folder, progress=False).predict("a b")[0].predictive == "frozen"


def test_another_sentence_encoder_is_refused(tmp_path: Path, cache: Callable[[], None]) -> None:
    cache()
    folder = with_encoder(tmp_path / "base").save(tmp_path / "heads")
    weights = tmp_path / "encoder" / "model.safetensors"
    changed = load_file(weights)
    name = next(iter(changed))
    save_file({**changed, name: changed[name] + 1}, weights, {"format": "pt"})
    with pytest.raises(ArtifactIncompatibleError, match="other weights of the sentence encoder"):
        Predictor.load(folder)


def _changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__setitem__(name, change(tensors[name]).contiguous())


def _renamed(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("frozen/", "encoder/", 1)] = tensors.pop(name)


def _widened(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if "/familiar/" in n and n.endswith((".center", ".directions"))]:
        tensors[name] = torch.cat([tensors[name], tensors[name][:1] * 0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_renamed, "name different heads, such as 'encoder'"),
        (_changed("frozen/head/inverse_temperature", lambda t: torch.ones(1).double()), "corrects something else"),
        (_changed("frozen/head/kind", lambda t: t * 10**12), "a constant of 2 for 2000000000000 classes"),
        (lambda t: [t.update({n.replace("last.2", "last.9"): t.pop(n)}) for n in list(t)], "a head of other features"),
        (_widened, "does not hold how familiar inputs are to frozen"),
        (lambda t: [t.pop(n) for n in list(t) if "/familiar/" in n], "do not agree whether heads say how familiar"),
    ],
)
def test_heads_that_are_damaged_are_refused(
    damage: Callable[[dict[str, torch.Tensor]], None], says: str, tmp_path: Path, cache: Callable[[], None]
) -> None:
    cache()
    folder = of_words(tmp_path / "base").save(tmp_path / "heads", verify=False)
    tensors = load_file(folder / EXPERTS)
    damage(tensors)
    save_file(tensors, folder / EXPERTS)
    reseal(folder)
    with pytest.raises(ArtifactCorruptError, match=says):
        Predictor.load(folder)


def test_labelled_rows_that_are_damaged_are_refused(tmp_path: Path, cache: Callable[[], None]) -> None:
    """Whatever could count a label as another row's, or fail in the midst of what learns them."""
    cache()
    folder = with_encoder(tmp_path / "base").save(tmp_path / "heads", verify=False)
    manifest, tensors = read_artifact(folder).manifest, load_file(folder / ROWS)
    served, fold, head = read_experts(folder / EXPERTS, manifest), "expert/frozen/outer/0", "expert/frozen"
    for name, change in {
        f"{head}/places": lambda t: t.flip(0),
        f"{fold}/kind": lambda t: t + torch.tensor([1, 0]),
        "labelled/class_mask": lambda t: t & torch.tensor([True, False]),
        "labelled/honest": lambda t: t & False,
    }.items():
        save_file({**tensors, name: change(tensors[name]).contiguous()}, folder / ROWS)
        with pytest.raises(ArtifactCorruptError, match="does not hold the labelled rows"):
            read_kept_rows(folder / ROWS, manifest, served)
    save_file(tensors, folder / ROWS)
    assert read_kept_rows(folder / ROWS, manifest, served).by_fold.keys() == set(range(5))
    heavy = manifest.model_dump(mode="json") | {"pool": {"frozen": 1e308, "encoder": 1.0}}
    with pytest.raises(ArtifactCorruptError, match="less than or equal to 1000000"):
        parse_manifest("heads", json.dumps(heavy).encode())


def test_labels_that_come_later_move_the_heads_on_disk_as_in_memory(tmp_path: Path, cache: Callable[[], None]) -> None:
    """Of a pool, whose weights stay; and they are forgotten byte for byte."""
    cache()
    posterior, inputs, known = (
        with_encoder(tmp_path / "base"),
        letter_rows(8, seed=4),
        {r["text"] for r in letter_rows(60)},
    )
    later = list({row["text"]: row for row in letter_rows(60, seed=3) if row["text"] not in known}.values())
    folder = posterior.save(tmp_path / "heads")
    digest, learned = read_artifact(folder).digest, posterior.condition(later)
    with pytest.warns(LaploraWarning), pytest.raises(DataError, match="0 labelled rows that are no copies"):
        laplora.condition(folder, letter_rows(20), device="cpu", progress=False)
    with pytest.warns(LaploraWarning, match="7 rows are copies of rows that the artifact was fitted on"):
        found = laplora.condition(folder, [*letter_rows(7), *later], device="cpu", progress=False, force=True)
    # Before and after, a row is answered without the old rows of its fold.
    outputs, pool, known = posterior.outputs([{"text": row["text"]} for row in later]), posterior.heads.pool, []
    for place, fold in enumerate(learned.heads.labelled.folds[-len(later) :].tolist()):
        one = outputs.take(torch.tensor([place]))
        logs = {
            name: of.fitted.outer[fold].log_probs(one.features[name]) for name, of in posterior.heads.experts.items()
        }
        logs["pooled"] = pooled(logs, pool.by_fold[fold]) if pool else torch.empty(0)
        known.append(-float(logs[posterior.recommended][0, list(LABELS).index(later[place]["label"])]))
    assert found.before.nll == pytest.approx(np.mean(known), abs=1e-4)
    loaded = laplora.load(folder, device="cpu", progress=False)
    for name in ("frozen", "encoder", "pooled"):
        expected = learned.predict_proba(inputs, name)
        np.testing.assert_allclose(loaded.predict_proba(inputs, name), expected, atol=1e-4)
        assert not np.allclose(expected, posterior.predict_proba(inputs, name), atol=1e-3)
        records = (of.predictor.artifact.manifest.predictives[name] for of in (loaded, learned))
        one, other = ((record.nll, record.conformal, record.thresholds.review.threshold) for record in records)
        assert one == pytest.approx(other, abs=1e-4)
    familiar = [[answer.familiarity for answer in of.predict(inputs)] for of in (loaded, learned)]
    assert familiar[0] == pytest.approx(familiar[1], abs=0.02)
    assert laplora.restore_packaged(folder).digest == digest
