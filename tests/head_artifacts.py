"""Artifacts of tiny classifiers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_classifiers import adapted_classifier, classifier_base
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import laplora
from laplora.models.classifier_head import output_layer
from laplora.predictor import Predictor

LABELS = ["negative", "positive"]
TEXTS = [{"text": "a b c d"}, {"text": "e"}, {"text": "f g h i j k l m n o p q"}]


def letters(around: str) -> Any:
    """Return a tokenizer of letters with [CLS] before a text and [SEP] behind it where ``around`` has them."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz", *(f"w{i}" for i in range(34))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def letter_rows(count: int, seed: int = 0, *, shortest: int = 2) -> list[dict[str, Any]]:
    """Return rows of ``shortest`` to seven letters, which tell the label "yes" or "no" but for one row in eight."""
    draw, rows = random.Random(seed), list[dict[str, Any]]()
    for i in range(count):
        yes = i % 2 == 0
        text = " ".join(draw.choices("abcdef" if yes else "efghij", k=draw.randint(shortest, 7)))
        rows.append({"text": text, "label": "yes" if yes == (i % 8 < 7) else "no"})
    return rows


def save_tokenizer(folder: Path) -> Any:
    """Save a tokenizer of letters that puts [CLS] before a text and [SEP] behind it, 64 tokens in all."""
    tokenizer = letters("[CLS] $A [SEP]")
    tokenizer.save_pretrained(folder)
    return tokenizer


def pack(target: Path, base: Path, model: Any) -> Path:
    """Fit a classifier of two classes on random rows, write its artifact, and return the folder.

    Args:
        base: folder of the base model and its tokenizer.
    """
    draw = random.Random(0)
    several = model.config.problem_type == "multi_label_classification"
    rows: list[dict[str, Any]] = [
        {"text": " ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 9))), "label": LABELS[i % 2]}
        for i in range(40)
    ]
    for row in rows if several else []:
        row["label"] = draw.sample(LABELS, draw.randint(0, 2))
    classifier = laplora.Classifier(model, AutoTokenizer.from_pretrained(base), "{text}", LABELS, max_tokens=12)
    settings = laplora.FitSettings.model_validate({"laplace": {"joint_rank": 8, "prior": "evidence"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPLORA_CACHE", str(base.parent))
        return laplora.fit(classifier, rows[:24], rows[24:], settings=settings, progress=False).save(
            target, base=str(base)
        )


def pack_several(folder: Path) -> Path:
    """Write the artifact of a tiny decoder of which each of two labels may be right, and return its folder."""
    base = save_base(folder / "base", classifier_base("llama", classes=2), head=False)
    model = adapted_classifier("llama", dtype=torch.float32, classes=2, problem_type="multi_label_classification")
    output_layer(model)[1].weight.data *= 2  # labels from absent to present
    return pack(folder / "several", base, model)


def load(artifact: Path, **options: Any) -> Predictor:
    """Return the predictor of an artifact, hashes remembered beside it."""
    return Predictor.load(artifact, device="cpu", cache_dir=artifact.parent, **options)


def save_base(folder: Path, model: Any, *, head: bool) -> Path:
    """Save a classifier's base, without its head unless ``head``, and the tokenizer; return the folder."""
    (model if head else getattr(model, model.base_model_prefix)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
