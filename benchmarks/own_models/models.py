"""Models as their owners make them: transformers, PEFT and Trainer, without laplora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.own_models.rows import Row, Rows
from laplora.models.offline import ensure_model

OFFLINE = "smollm2-135m-instruct"
PROMPT = "Review: {text}\nSentiment:"
#: The layers of SmolLM2 that have LoRA beside a head, of 30: the gradient goes no deeper.
TOP = list(range(20, 30))
MAX_TOKENS = 64
ADAPTER = "adapter"


def sentences(model: Any, tokenizer: Any, rows: Rows) -> list[Mapping[str, list[int]]]:
    """Return training rows as a prompt and its label's text, the loss on the label alone."""
    found = []
    for row in rows.train:
        prompt = tokenizer.encode(PROMPT.format(**row))
        label = tokenizer.encode(f" {row['label']}")
        found.append({"input_ids": prompt + label, "labels": [-100] * len(prompt) + label})
    return found


def questions(model: Any, tokenizer: Any, rows: Rows, given: Sequence[Row] | None = None) -> list[Mapping[str, Any]]:
    """Return training rows with their class, or with a vector of 0 and 1 where a row has a list of labels."""
    found = []
    for row in rows.train if given is None else given:
        ids = tokenizer(row["text"], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        several = isinstance(row["label"], list)
        truth = [float(name in row["label"]) for name in rows.labels] if several else rows.labels.index(row["label"])
        found.append({"input_ids": ids, "labels": truth})
    return found


def causal(folder: Path, rows: Rows) -> tuple[Any, Any]:
    """Return SmolLM2 with LoRA on q and v, whose labels are words, and its tokenizer."""
    base = str(ensure_model(OFFLINE))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return _adapted(model, folder, config), AutoTokenizer.from_pretrained(base)


def headed(folder: Path, rows: Rows) -> tuple[Any, Any]:
    """Return SmolLM2 with a classification head and LoRA on q and v of its upper layers, and its tokenizer."""
    base = str(ensure_model(OFFLINE))
    tokenizer = AutoTokenizer.from_pretrained(base)
    several = isinstance(rows.train[0]["label"], list)
    set_seed(0)  # of the head
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(rows.labels),
        dtype=torch.float32,
        problem_type="multi_label_classification" if several else "single_label_classification",
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], layers_to_transform=TOP, task_type="SEQ_CLS"
    )
    return _adapted(model, folder, config), tokenizer


def encoder(folder: Path, rows: Rows) -> tuple[Any, Any]:
    """Return a small ModernBERT with a head and LoRA on its linears, and its tokenizer.

    It is trained whole on the pretraining rows first and kept in the folder: a stand-in, since no pretrained encoder
    is on the package index.
    """
    base = folder / "base"
    if not (base / "config.json").is_file():
        _encoder_from_nothing(base, rows)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["Wqkv", "Wo", "Wi"], task_type="SEQ_CLS")
    return _adapted(model, folder, config), AutoTokenizer.from_pretrained(base)


def train(model: Any, tokenizer: Any, rows: Sequence[Any], folder: Path, *, epochs: int, rate: float) -> None:
    """Train by transformers' Trainer, in batches of 16."""
    arguments = TrainingArguments(
        str(folder / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        learning_rate=rate,
        warmup_steps=20,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        logging_steps=20,
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )

    def collate(items: Sequence[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        longest = max(len(item["input_ids"]) for item in items)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

        def padded(values: list[int], filler: int) -> list[int]:
            return values + [filler] * (longest - len(values))

        labels = [item["labels"] for item in items]
        words = isinstance(labels[0], list) and isinstance(labels[0][0], int)
        return {
            "input_ids": torch.tensor([padded(item["input_ids"], pad) for item in items]),
            "attention_mask": torch.tensor([padded([1] * len(item["input_ids"]), 0) for item in items]),
            "labels": torch.tensor([padded(label, -100) for label in labels] if words else labels),
        }

    set_seed(0)
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    model.eval()


def _adapted(model: Any, folder: Path, config: LoraConfig) -> Any:
    """Return the model with the folder's adapter, or with a new one where there is none yet."""
    set_seed(0)
    adapter = folder / ADAPTER
    return PeftModel.from_pretrained(model, adapter) if adapter.is_dir() else get_peft_model(model, config)


def _encoder_from_nothing(base: Path, rows: Rows) -> None:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    inner.train_from_iterator(
        [row["text"] for row in rows.pretraining], trainers.WordPieceTrainer(vocab_size=4000, special_tokens=special)
    )
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    config = ModernBertConfig(
        vocab_size=inner.get_vocab_size(),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        classifier_pooling="mean",
        num_labels=len(rows.labels),
        mlp_dropout=0.1,
        embedding_dropout=0.1,
        classifier_dropout=0.1,
    )
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    train(model, tokenizer, questions(model, tokenizer, rows, rows.pretraining), base, epochs=8, rate=2e-3)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
