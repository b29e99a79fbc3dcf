"""Embeddings of a sentence encoder: the real one's, and which folders of sentence-transformers are read, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_classifiers import head_alone
from tiny_models import tiny_base
from tiny_tokenizer import encoder_tokenizer, tiny_tokenizer
from transformers import AutoModel, AutoTokenizer

import laplora
from laplora.errors import ModelError
from laplora.features.layers import feature_layers
from laplora.features.sentence_encoder import SentenceEncoder, TextEncoding, load_sentence_encoder, load_text_encoding
from laplora.models.hashes import weights_hash
from laplora.models.offline import ensure_encoder
from laplora.prompts.templates import PromptTemplate

SAY = PromptTemplate("t", 1, "Say what this is about: {text} Answer:")
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}


def embedded(encoder: SentenceEncoder, texts: Sequence[str], batch_size: int = 3) -> dict[str, torch.Tensor]:
    """Return the blocks of texts, each the field of a prompt."""
    rows = [encoder.encode(SAY, "ab", {"text": text}) for text in texts]
    parts = [encoder.blocks(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check(
    found: dict[str, torch.Tensor], folder: Path, texts: Sequence[str], tokens: int, pooling: str, normalised: bool
) -> None:
    """Compare blocks with those of transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for row, text in enumerate(texts):
        with torch.no_grad():
            given = tokenizer(text, return_tensors="pt", truncation=True, max_length=tokens)
            states = [one[0] for one in model(**given, output_hidden_states=True).hidden_states]
        embedding = states[-1][0] if pooling == "cls" else states[-1].mean(0)
        expected = {f"mean.{layer}": states[layer].mean(0) for layer in feature_layers(model)[:-1]}
        expected["embedding"] = embedding / embedding.norm() if normalised else embedding
        assert list(found) == list(expected)
        for name, block in found.items():
            assert block.dtype == torch.float32
            torch.testing.assert_close(block[row], expected[name], atol=1e-5, rtol=1e-4)


def test_the_encoder_of_the_package_index_places_like_texts_together() -> None:
    """Its own settings say 256 tokens, a mean and unit length; a batch, and padding in it, change no embedding."""
    folder = ensure_encoder("all-minilm-l6-v2")
    encoder = load_sentence_encoder("all-minilm-l6-v2")
    assert (encoder.max_tokens, encoder.pooling, encoder.normalised) == (256, "mean", True)
    texts = ["My card was stolen yesterday.", "Somebody took my bank card.", "The film was dull.", "card lost " * 400]
    found = embedded(encoder, texts)
    check(found, folder, texts, 256, "mean", normalised=True)
    single = embedded(encoder, texts, batch_size=1)
    assert all(torch.allclose(block, single[name], atol=1e-5) for name, block in found.items())
    alike, unlike, _ = (found["embedding"][0] @ found["embedding"][1:].T).tolist()
    assert alike > 0.6
    assert unlike < 0.2
    # A question's options, and each field, are a line each; the template's words are none of it.
    asked = PromptTemplate("t", 1, "Question: {question} Choices: {choices} Hint: {hint} Answer:")
    fields = {"question": "Who?", "choices": ["a man", "a dog"], "hint": "barks"}
    text = "Who?\na man\na dog\nbarks"
    assert encoder.encode(asked, "AB", fields) == tuple(encoder.tokenizer.encode(text))
    assert encoder.encode(asked, "AB", {"prompt": text}) == tuple(encoder.tokenizer.encode(text))
    # Without weights the texts are the same.
    alone = load_text_encoding("all-minilm-l6-v2")
    assert type(alone) is TextEncoding
    assert (alone.location, alone.max_tokens, alone.bounds) == (str(folder), 256, encoder.bounds)
    assert alone.encode(SAY, "ab", {"text": texts[3]}) == encoder.encode(SAY, "ab", {"text": texts[3]})
    assert weights_hash(encoder.location) == weights_hash(str(folder))


BANK = "My card was stolen; I want an account; How do I transfer money; The loan was refused; Somebody knows my PIN"
FILM = "The plot makes no sense; A great cast; I fell asleep at the cinema; The sequel is dull; Her best role so far"


def test_a_head_on_embeddings_answers_words_that_no_label_had() -> None:
    """Beside a base that knows nothing: its weights are random."""
    tokenizer = tiny_tokenizer()
    classifier = laplora.Classifier(
        tiny_base("llama", vocab_size=len(tokenizer)), tokenizer, "{text}\nTopic:", {"bank": " A", "film": " B"}
    )
    rows = [
        {"text": text, "label": label} for label, texts in (("bank", BANK), ("film", FILM)) for text in texts.split(";")
    ]
    settings = laplora.FitSettings.model_validate({"experts": {"names": ["encoder"]}})
    posterior = laplora.fit(classifier, rows, settings=settings, progress=False)
    assert float(posterior.losses["encoder"].mean()) < 0.5  # by chance .69
    asked = [
        "My payment to the landlord failed",
        "The actors could not act",
        "Why was I charged a fee",
        "A boring movie",
    ]
    assert [answer.label for answer in posterior.predict(asked)] == ["bank", "film", "bank", "film"]


def save(folder: Path, modules: list[tuple[str, str]], pooling: dict[str, Any], **settings: Any) -> Path:
    """Write a random encoder as sentence-transformers would, of at most 6 tokens, and return the folder."""
    tokenizer = encoder_tokenizer()
    model = head_alone("bert", dtype=torch.float32, vocab_size=len(tokenizer)).bert
    model.save_pretrained(folder / modules[0][0])
    tokenizer.save_pretrained(folder / modules[0][0])
    (folder / "1_Pooling").mkdir()
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    for path, content in (
        ("modules.json", listed),
        ("1_Pooling/config.json", pooling),
        (Path(modules[0][0]) / "sentence_bert_config.json", {"max_seq_length": 6, **settings}),
    ):
        (folder / path).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("place", "normalised", "settings", "pooling"),
    [
        ("", False, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ("0_Transformer", True, MEAN, "mean"),
        ("", True, {"pooling_mode": "cls"}, "cls"),
    ],
)
def test_folders_of_sentence_transformers_are_read_as_they_say(
    tmp_path: Path, place: str, normalised: bool, settings: dict[str, Any], pooling: str
) -> None:
    modules = [(place, "Transformer"), ("1_Pooling", "Pooling"), *[("2_Normalize", "Normalize")] * normalised]
    encoder = load_sentence_encoder(str(save(tmp_path, modules, settings)))
    texts = ["great", "The film was dull", "the plot was great great great great great"]
    assert Path(encoder.location) == tmp_path / place
    check(embedded(encoder, texts), tmp_path / place, texts, 6, pooling, normalised)


def test_what_is_no_plain_sentence_encoder_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plain = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for number, (modules, pooling, message) in enumerate(
        [
            ([*plain, ("2_Dense", "Dense")], MEAN, "modules are .*'Dense'"),
            ([("", "Transformer"), ("../1_Pooling", "Pooling")], MEAN, r"a module lies in '\.\./1_Pooling'"),
            (plain, {"pooling_mode_max_tokens": True}, "pooling is .*max_tokens"),
            (plain, MEAN | {"pooling_mode_cls_token": True}, "pooling is .*cls_token', 'mean_tokens"),
            (plain, {"pooling_mode": "lasttoken"}, "pooling is .*lasttoken"),
        ]
    ):
        folder = save(tmp_path / str(number), modules, pooling)
        with pytest.raises(ModelError, match=message):
            load_sentence_encoder(str(folder))
    folder = save(tmp_path / "cased", plain, MEAN, do_lower_case=True)
    load_sentence_encoder(str(folder))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    with pytest.raises(ModelError, match="texts are lowered"):
        load_sentence_encoder(str(folder))
    for name, settings, message in (
        ("negative", {"max_seq_length": -5}, "max_seq_length is -5"),
        ("half", {}, "without 'e"),
    ):
        folder = save(tmp_path / name, plain, MEAN, **settings)
        weights = load_file(folder / "model.safetensors")
        left = {key: each for key, each in weights.items() if name != "half" or "attention" in key}
        save_file(left, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=message):
            load_sentence_encoder(str(folder))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelError, match="no model or tokenizer can be loaded"):
        load_sentence_encoder(str(folder))
    (folder / "1_Pooling/config.json").write_text("[1]")
    with pytest.raises(ModelError, match="no JSON object"):
        load_sentence_encoder(str(folder))
    folder = save(tmp_path / "pickled", plain, MEAN)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no model or tokenizer can be loaded"):
        load_sentence_encoder(str(folder))
    (folder / "modules.json").write_text('{"type": 1}')
    with pytest.raises(ModelError, match="no list of modules"):
        load_sentence_encoder(str(folder))
    (folder / "modules.json").unlink()
    for where in (str(folder), "nobody/nothing"):
        with pytest.raises(ModelError, match=f"'{where}' cannot be used, there is no modules.json"):
            load_sentence_encoder(where)
