"""Training as people do it, and the weights that are kept of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import set_seed

from benchmarks.evidence.plan import EARLY_EPOCHS, EPOCHS, SMALL, Base
from benchmarks.evidence.tasks import Task
from laplora.classifier import Classifier
from laplora.errors import NonFiniteError
from laplora.files.atomic import write_json, write_tensors
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, locate_base
from laplora.models.quiet import quiet_loading
from laplora.predictive.lora_weights import lora_parameters
from laplora.prompts.examples import Example
from laplora.prompts.rows import EncodedRow

BATCH = 8
RATE = 5e-4
RANK, ALPHA, DROPOUT = 8, 16, 0.1
TARGETS = ("q_proj", "v_proj")
#: Batches are of like length within a group of so many.
_GROUP = 8

Weights = dict[str, torch.Tensor]


def load_classifier(task: Task, of: Base = SMALL) -> Classifier:
    """Return a base model in bfloat16 with a fresh LoRA adapter, and head, in float32.

    Their start is that of torch's seed.
    """
    with quiet_loading():
        from peft import LoraConfig, get_peft_model

        spec = BaseSpec(of, None, "none", "bfloat16", classes=len(task.labels) if task.head else None)
        location = locate_base(spec, progress=lambda line: print(line, flush=True))
        base = load_base_model(location, spec, device=torch.device("cpu")).model
        tokenizer = load_tokenizer(location)
        base.config.pad_token_id = tokenizer.pad_token_id
        kind = "SEQ_CLS" if task.head else "CAUSAL_LM"
        settings = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(TARGETS), task_type=kind
        )
        model = get_peft_model(base, settings)
    classifier = Classifier(model, tokenizer, task.template, task.labels, max_tokens=task.max_tokens)
    for parameter in lora_parameters(model).values():  # PEFT leaves a head in the base's format
        parameter.data = parameter.data.float()
    return classifier


def put(classifier: Classifier, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy LoRA weights, by block name, into the model."""
    with torch.no_grad():
        for name, parameter in lora_parameters(classifier.model).items():
            parameter.copy_(weights[name])


def take(classifier: Classifier) -> Weights:
    """Return a copy of the model's LoRA weights by block name, float32."""
    return {name: p.detach().float().clone() for name, p in lora_parameters(classifier.model).items()}


def train(
    task: Task,
    examples: Sequence[Example],
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    of: Base = SMALL,
    rates: tuple[float, float] = (RATE, RATE),
) -> Classifier:
    """Train one adapter; return its classifier in evaluation mode, and write its weights to the folder.

    AdamW with linearly falling ``rates``, of all weights and of every ``lora_B``, dropout, no weight decay, as
    ``training/configs/sst2-smollm2.yaml``. Written are ``early`` and last ``training.json``. After a finished training,
    the classifier has its start: ``put`` gives it what was written.

    Raises:
        NonFiniteError: a weight became NaN or infinite.
    """
    set_seed(seed)
    classifier = load_classifier(task, of)
    if (folder / "training.json").is_file():
        return classifier
    started, processor = time.monotonic(), time.process_time()
    rows = classifier.encode_examples(examples)
    labels = torch.tensor([e.label for e in examples])
    named = lora_parameters(classifier.model)
    parameters = list(named.values())
    steps = EPOCHS * -(-len(rows) // BATCH)
    sides = [[one for name, one in named.items() if name.endswith(".lora_B") is b] for b in (False, True)]
    groups = [{"params": of_side, "lr": rate} for of_side, rate in zip(sides, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order, losses = random.Random(f"{task.name} order {seed}"), []
    with _training(classifier, parameters):
        for epoch in range(EARLY_EPOCHS):
            losses.append(0.0)
            for index in shuffled([len(r.token_ids) for r in rows], order):
                loss = _loss(classifier, [rows[i] for i in index], labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                losses[epoch] += float(loss.detach()) * len(index) / len(rows)
            spent = time.monotonic() - started
            say(f"epoch {epoch + 1} of {EARLY_EPOCHS}: training loss {losses[epoch]:.4f}, {spent:.0f} s")
    if not all(bool(p.isfinite().all()) for p in parameters):
        raise NonFiniteError("training ended with NaN or infinite weights")
    write_tensors(folder / "early.safetensors", take(classifier))
    seconds, processor = round(time.monotonic() - started, 1), round(time.process_time() - processor, 1)
    record = {"rows": len(rows), "steps": steps, "losses": losses, "seconds": seconds, "processor_seconds": processor}
    write_json(folder / "training.json", record)
    return classifier


@contextmanager
def _training(classifier: Classifier, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Hold the model in training mode, with the attention that is faster on short rows."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    base = classifier.model.base_model.model
    base.set_attn_implementation("eager")
    classifier.model.train()
    try:
        yield
    finally:
        classifier.model.eval()
        base.set_attn_implementation("sdpa")


def _loss(classifier: Classifier, rows: Sequence[EncodedRow], labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of a batch with labels (rows,), nats."""
    logits = classifier.readout.scores(classifier.model, classifier.collate(rows)).logits
    return F.cross_entropy(logits.float(), labels)


def shuffled(lengths: Sequence[int], order: random.Random) -> Iterator[list[int]]:
    """Yield row numbers in random batches, of like length within groups of batches; every row once."""
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    batches = []
    for start in range(0, len(rows), BATCH * _GROUP):
        group = sorted(rows[start : start + BATCH * _GROUP], key=lengths.__getitem__)
        batches += [group[i : i + BATCH] for i in range(0, len(group), BATCH)]
    order.shuffle(batches)
    yield from batches
