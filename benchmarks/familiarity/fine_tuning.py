"""Fine-tuning as the owner of a model does it: transformers' Trainer, without laplora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, set_seed


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
