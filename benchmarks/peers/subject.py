"""The inputs of every peer: a model with LoRA weights, rows, labels."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness.provenance import ARTIFACT, ROOT
from laplora.artifact.folder import read_artifact
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, locate_base
from laplora.prompts.examples import Example
from laplora.prompts.rows import Batch, EncodedRow, collate, encode
from laplora.prompts.templates import render
from training.config import load_config
from training.data.section import Splits, load_splits


@dataclass(frozen=True)
class Subject:
    """A classifier, a PEFT model in eval mode, and the rows it is compared on; every class is possible."""

    model: Any
    label_ids: tuple[int, ...]
    pad_id: int
    train: tuple[EncodedRow, ...]
    train_labels: torch.Tensor
    test: tuple[EncodedRow, ...]

    def batch(self, rows: Sequence[EncodedRow]) -> Batch:
        """Return rows as one left-padded batch."""
        return collate(rows, class_count=len(self.label_ids), pad_token_id=self.pad_id)

    def batches(self, rows: Sequence[EncodedRow], size: int = 1) -> Iterator[Batch]:
        """Yield the rows in order, ``size`` at a time."""
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size])


def tiny_subject() -> Subject:
    """Return a random two-layer Llama with LoRA on q and v, and random rows of 1 to 7 tokens."""
    tiny, train, classes = _tiny_models(), 24, 3
    task = tiny.tiny_task(examples=train + 8, classes=classes)
    rows = [dataclasses.replace(r, class_count=classes) for r in task.rows]
    return Subject(
        model=tiny.tiny_model("llama", targets=["q_proj", "v_proj"], dropout=0.0, dtype=torch.float64),
        label_ids=tuple(task.label_ids),
        pad_id=tiny.PAD,
        train=tuple(rows[:train]),
        train_labels=task.labels[:train],
        test=tuple(rows[train:]),
    )


def _tiny_models() -> Any:
    """Return the tests' module of tiny models, which lies outside of any package."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    import tiny_models

    return tiny_models


def artifact_rows() -> tuple[Splits, str]:
    """Return the rows of the default artifact, as text, and the folder of its base model."""
    config = load_config(ROOT / "training" / "configs" / f"{ARTIFACT.name}.yaml")
    location = locate_base(BaseSpec(config.base.model, config.base.revision))
    return load_splits(config.data, seed=config.seed), location


def artifact_subject(*, train: int, test: int) -> Subject:
    """Return the default artifact's model on its first training and test rows, with the weights that are served."""
    manifest = read_artifact(ARTIFACT).manifest
    splits, location = artifact_rows()
    tokenizer = load_tokenizer(location)
    spec = dataclasses.replace(manifest.base, dtype="float32")
    base = load_base_model(location, spec, device=torch.device("cpu"), dequantize=True).model
    model = attach_adapter(base, ARTIFACT / "adapter").to(torch.float32)
    template = manifest.template.template()

    def encoded(examples: Sequence[Example]) -> tuple[EncodedRow, ...]:
        rendered = [render(template, e.fields, manifest.labels) for e in examples]
        return tuple(encode(tokenizer, text, n, max_tokens=manifest.max_tokens, truncate=True) for text, n in rendered)

    chosen, held_out = splits.train[:train], splits.test[:test]
    return Subject(
        model=model,
        label_ids=manifest.readout.token_ids,
        pad_id=tokenizer.pad_token_id,
        train=encoded(chosen),
        train_labels=torch.tensor([e.label for e in chosen]),
        test=encoded(held_out),
    )


@contextmanager
def plain_attention() -> Iterator[None]:
    """Run torch's attention as plain matrix products: the fused kernels of a CPU know no forward-mode derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Run a model with transformers' products instead of torch's attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attentions(model: Any) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """Return the ways in which a model's attention can be computed on a CPU, by name; the first always works."""
    return {
        "sdpa by plain products": plain_attention,
        "sdpa, fused": nullcontext,
        "eager": lambda: eager_attention(model),
    }


def lora_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Make LoRA weights, and only them, trainable; return them by block name, in order."""
    chosen = {}
    for name, parameter in model.named_parameters():
        block = name.removeprefix("base_model.model.").removesuffix(".default.weight")
        trained = ".lora_" in name
        parameter.requires_grad_(trained)
        if trained:
            chosen[block] = parameter
    return chosen


def initial_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return plausible initial LoRA weights of a tiny model by block name: A near where it is, B zero."""
    draw = torch.Generator().manual_seed(2)
    initial = {}
    for name, weight in model.named_parameters():
        block = name.removeprefix("base_model.model.").removesuffix(".default.weight")
        if block.endswith("lora_A"):
            initial[block] = weight.detach() + 0.1 * torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        elif block.endswith("lora_B"):
            initial[block] = torch.zeros_like(weight)
    return initial
