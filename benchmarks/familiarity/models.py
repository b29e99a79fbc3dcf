"""A home's model, as its owner makes it with PEFT and Trainer, and what a forward pass of it shows of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import laplora
from benchmarks.familiarity.homes import Home
from laplora.jacobians.states import StateTape, decoder_layers
from laplora.models.offline import ensure_model
from laplora.prompts.examples import Example

_BATCH = 16
OFFLINE = "smollm2-135m-instruct"
#: The layers of SmolLM2 that have LoRA beside a head, of 30: the gradient goes no deeper.
TOP = list(range(20, 30))
MAX_TOKENS = 64


@dataclass(frozen=True)
class Shown:
    """What a forward pass shows of some texts.

    Attributes:
        hidden: (rows, layers, hidden) float32, at the last real token after every layer; logits: (rows, classes).
    """

    hidden: torch.Tensor
    logits: torch.Tensor


def classifier(home: Home, folder: Path) -> laplora.Classifier:
    """Return a home's model, trained once and kept in the folder."""
    base = str(ensure_model(OFFLINE))
    tokenizer = AutoTokenizer.from_pretrained(base)
    set_seed(0)
    targets: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    if home.template is None:
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=len(home.labels), dtype=torch.float32
        )
        model.config.pad_token_id = tokenizer.pad_token_id
        config = LoraConfig(**targets, layers_to_transform=TOP, task_type="SEQ_CLS")
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(**targets, task_type="CAUSAL_LM")
    adapter = folder / "adapter"
    if adapter.is_dir():
        model = PeftModel.from_pretrained(model, adapter)
    else:
        model = get_peft_model(model, config)
        _train(model, tokenizer, home, folder / "trainer")
        model.save_pretrained(adapter)
    return laplora.Classifier(
        model.eval(), tokenizer, home.template or "{text}", home.labels, max_tokens=2 * MAX_TOKENS
    )


def _train(model: Any, tokenizer: Any, home: Home, folder: Path) -> None:
    """Train as the owner of a model does it, without laplora."""
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=home.epochs,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
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
    collator = DataCollatorWithPadding if home.template is None else DataCollatorForSeq2Seq
    set_seed(0)
    rows: Any = _encoded(home, tokenizer)
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator(tokenizer)).train()
    model.eval()


def _encoded(home: Home, tokenizer: Any) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for text, label in home.train:
        if home.template is None:
            ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
            rows.append({"input_ids": ids, "labels": label})
            continue
        prompt = tokenizer.encode(home.template.format(text=text))
        word = tokenizer.encode(f" {home.labels[label]}")
        rows.append({"input_ids": prompt + word, "labels": [-100] * len(prompt) + word})
    return rows


def shown(classifier: laplora.Classifier, texts: Sequence[str], file: Path) -> Shown:
    """Return what forward passes show of texts, kept in a file."""
    if file.is_file():
        return Shown(**load_file(file))
    layers = range(len(decoder_layers(classifier.model)))
    examples = [Example(str(i), {"text": text}, 0, classifier.class_count) for i, text in enumerate(texts)]
    places: list[int] = []
    parts = []
    with torch.no_grad():
        for index, batch in classifier.batched(examples, _BATCH):
            with StateTape(classifier.model, layers, batch.attention_mask) as tape:
                logits = classifier.readout.scores(classifier.model, batch).logits
            parts.append((tape.states(logits).hidden, logits.float()))
            places += index
    order = torch.tensor(places).argsort()
    hidden, values = (torch.cat(part)[order].contiguous() for part in zip(*parts, strict=True))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"hidden": hidden, "logits": values}, file)
    return Shown(hidden, values)
