"""Gather: the only part of the study that runs the model. One fine-tuning and one Jacobian pass per task and seed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.study.config import StudyConfig
from benchmarks.study.store import offsets, read_configuration
from benchmarks.study.structures.kfac import every_token
from laplora.jacobians.blocks import Block, BlockJacobian
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrast_hessian
from laplora.models.adapters import attach_adapter
from laplora.models.readout import label_logits, label_mass, last_hidden
from laplora.predictive.member_adapters import dropout_weights, in_place, lora_parameters, read_weights
from laplora.prompts.option_order import option_orders, permute_choices, restore_logits
from laplora.prompts.rows import EncodedRow
from training.calibration.posteriors import squared_distances
from training.config import RunConfig
from training.data.section import Example
from training.finetune import finetune
from training.workspace.files import write_json, write_tensors
from training.workspace.folders import set_aside
from training.workspace.members import member_folder, member_steps
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import progress, say


def gather(config: StudyConfig, task: str, seed: int) -> Path:
    """Fine-tune one model and store what every alternative needs of it; return the folder.

    A finished part is not done again, unless the configuration is another one now: then none of it is used.
    """
    folder = config.folder(task, seed)
    started = time.monotonic()
    settings = config.run_config(task, seed)
    configuration = gathered_under(settings)
    if read_configuration(folder) != configuration:
        aside = set_aside(folder, tuple(path.name for path in folder.glob("*.safetensors")))
        if aside:
            say(f"what another configuration gathered is kept in {aside}")
    elif (folder / "gathered.json").is_file() and all(stored(folder, s) for s in ("train", "calibration", "test")):
        return folder
    write_json(folder / "configuration.json", configuration)
    finetune(settings)
    run = open_run(settings)
    model = attach_adapter(run.load_base(), settings.run_dir / "adapter")
    blocks = find_blocks(model, run.class_count)
    for split in ("train", "calibration", "test"):
        if not stored(folder, split):
            store_split(run, model, blocks, getattr(run.splits, split), folder, split, config.batch_size)
    adapters = [member_folder(settings, step) for step in member_steps(settings)]
    for split in ("calibration", "test"):
        examples = getattr(run.splits, split)
        path = folder / f"members.{split}.safetensors"
        if adapters and not path.is_file():
            write_tensors(path, {a.name: member_logits(run, model, a, examples, config.batch_size) for a in adapters})
    write_json(
        folder / "gathered.json",
        {
            "task": task,
            "seed": seed,
            "labels": list(run.splits.task.labels),
            "blocks": [vars(b) for b in blocks],
            "steps": settings.optimizer.steps,
            "splits": run.splits.report,
            "squared_distances": squared_distances(settings, blocks).tolist(),
            "mean_tokens": sum(len(r.token_ids) for r in run.encode(run.splits.test)) / len(run.splits.test),
            "seconds": time.monotonic() - started,
        },
    )
    return folder


def gathered_under(settings: RunConfig) -> dict[str, Any]:
    """Return the fields that what is gathered depends on; how posteriors are fitted from it is not among them."""
    fields = {"seed", "base", "data", "max_tokens", "adapter", "optimizer", "predictives"}
    return settings.model_dump(mode="json", include=fields)


def stored(folder: Path, split: str) -> bool:
    """Return whether a split's tensors are there, its Jacobians too, which are not kept unless asked for."""
    return all((folder / f"{split}.{kind}").is_file() for kind in ("jacobians.safetensors", "safetensors"))


def store_split(
    run: Run,
    model: nn.Module,
    blocks: tuple[Block, ...],
    examples: Sequence[Example],
    folder: Path,
    split: str,
    batch_size: int,
) -> None:
    """Write one split's Jacobians, logits and, for the training rows, its Kronecker inputs."""
    rows = run.encode(examples)
    count, classes = len(rows), run.class_count
    parameters = offsets(blocks)[-1][1]
    jacobians = torch.zeros(count, classes - 1, parameters, dtype=torch.bfloat16)
    small: dict[str, torch.Tensor] = {}
    expand: dict[str, torch.Tensor] = {}

    def keep(name: str, index: list[int], values: torch.Tensor) -> None:
        if name not in small:
            small[name] = torch.zeros(count, *values.shape[1:], dtype=values.dtype)
        small[name][index] = values

    plan = list(by_classes_and_length(rows, batch_size))
    for index in progress(plan, len(plan), f"{run.config.name} {split}"):
        batch = run.collate([rows[i] for i in index])
        # A row's first k classes are reached by the first k - 1 contrasts alone: fewer backward passes.
        possible = int(batch.class_mask.sum(1).max())
        training = split == "train"
        result = contrast_jacobians(model, batch, run.label_ids[:possible], blocks, tokens=training)
        for i, (first, last) in enumerate(offsets(blocks)):
            jacobians[index, : possible - 1, first:last] = result.blocks[i].jacobian.flatten(2).to(jacobians)
        logits = torch.zeros(len(index), classes)
        logits[:, :possible] = result.logits.float()
        keep("logits", index, logits)
        keep("class_mask", index, batch.class_mask.cpu())
        keep("hidden", index, result.hidden.float())
        keep("label_mass", index, label_mass(model, result.hidden, run.label_ids, batch.class_mask).float())
        if training:
            hessian = contrast_hessian(result.logits, batch.class_mask[:, :possible]).float()
            expand["expand_tokens"] = expand.get("expand_tokens", 0) + batch.attention_mask.sum().float()[None]
            for i, part in enumerate(result.blocks):
                assert part.mean_input is not None
                assert part.summed_gradient is not None
                inputs, gradients, _ = every_token(part)
                keep(f"mean_input.{i}", index, part.mean_input.float())
                keep(f"summed_gradient.{i}", index, _all_contrasts(part.summed_gradient.float(), classes))
                keep(f"last_input.{i}", index, inputs[:, -1].float())
                keep(f"last_gradient.{i}", index, _all_contrasts(gradients[:, :, -1].float(), classes))
                names = (f"expand_input.{i}", f"expand_gradient.{i}")
                for name, values in zip(names, token_products(part, hessian), strict=True):
                    expand[name] = expand.get(name, 0) + values
    small["labels"] = torch.tensor([e.label for e in examples])
    write_tensors(folder / f"{split}.jacobians.safetensors", {"jacobians": jacobians})
    write_tensors(folder / f"{split}.safetensors", small | expand)


def _all_contrasts(values: torch.Tensor, classes: int) -> torch.Tensor:
    """Return (batch, classes - 1, out): 0 at the contrasts with classes that these rows cannot have."""
    padded = torch.zeros(len(values), classes - 1, values.shape[-1])
    padded[:, : values.shape[1]] = values
    return padded


def token_products(part: BlockJacobian, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one block's sums over rows and tokens of both factors' outer products, (in, in) and (out, out) float32.

    Args:
        hessian: (batch, contrasts, contrasts) float32.

    Raises:
        FactorizationError: Jacobians without every token.
    """
    every_input, every_gradient, _ = every_token(part)
    inputs, gradients = every_input.float(), every_gradient.float()
    flat = inputs.flatten(0, 1)
    weighted = torch.einsum("ncd,ndto->ncto", hessian, gradients)
    return flat.T @ flat, weighted.flatten(0, 2).T @ gradients.flatten(0, 2)


def by_classes_and_length(rows: Sequence[EncodedRow], size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of one class count and like length."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].class_count, len(rows[i].token_ids), i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == size or rows[i].class_count != rows[batch[0]].class_count):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def wanted_forwards(config: StudyConfig, task: str) -> tuple[str, ...]:
    """Return the kinds of forward passes, beside those of the checkpoints, that a task is to have."""
    wanted = {"dropout": config.dropout_samples > 0, "orders": config.tasks[task].orders}
    return tuple(kind for kind, on in wanted.items() if on)


def gather_forwards(config: StudyConfig, task: str, seed: int) -> None:
    """Store the logits of dropout masks and of option orders: forward passes alone, of a gathered task and seed."""
    folder = config.folder(task, seed)
    missing = [k for k in wanted_forwards(config, task) if not (folder / f"{k}.test.safetensors").is_file()]
    if not missing:
        return
    settings = config.run_config(task, seed)
    run = open_run(settings)
    model = attach_adapter(run.load_base(), settings.run_dir / "adapter")
    blocks = find_blocks(model, run.class_count)
    for split in ("calibration", "test"):
        examples = getattr(run.splits, split)
        rows = run.encode(examples)
        if "dropout" in missing:
            masks = dropout_weights(model, blocks, p=config.adapter.dropout, members=config.dropout_samples, seed=seed)
            logits = {}
            for number, weights in enumerate(masks):
                with in_place(lora_parameters(model), weights):
                    logits[f"{number}"] = all_logits(run, model, rows, config.batch_size, f"{task} mask {number}")
            write_tensors(folder / f"dropout.{split}.safetensors", logits)
        if "orders" in missing:
            write_tensors(folder / f"orders.{split}.safetensors", order_logits(run, model, examples, config.batch_size))


def order_logits(run: Run, model: Any, examples: Sequence[Example], batch_size: int) -> dict[str, torch.Tensor]:
    """Return the label logits of every row under every order but its own, brought back to its own, (rows, classes).

    Rows with fewer options have fewer orders: their first ones are repeated, so that each row is an average over
    whole rounds of its orders only where all rows have as many options.
    """
    counts = sorted({e.class_count for e in examples})
    most = len(option_orders(counts[-1]))
    result = {}
    for number in range(1, most):
        logits = torch.zeros(len(examples), run.class_count)
        for count in counts:
            index = [i for i, e in enumerate(examples) if e.class_count == count]
            orders = option_orders(count)
            order = orders[number % len(orders)]
            asked = [replace(examples[i], fields=permute_choices(examples[i].fields, order)) for i in index]
            got = all_logits(run, model, run.encode(asked), batch_size, f"{run.config.name} order {number}")
            logits[index] = restore_logits(got, order)
        result[f"{number}"] = logits
    return result


def member_logits(run: Run, model: Any, adapter: Path, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
    """Return the label logits of every row under another adapter, (rows, classes)."""
    with in_place(lora_parameters(model), read_weights(model, adapter)):
        return all_logits(run, model, run.encode(examples), batch_size, f"{run.config.name} {adapter.name}")


def all_logits(run: Run, model: Any, rows: list[EncodedRow], batch_size: int, title: str) -> torch.Tensor:
    """Return the label logits of every row, (rows, classes) float32, by forward passes only."""
    logits = torch.zeros(len(rows), run.class_count)
    plan = list(by_classes_and_length(rows, batch_size))
    with torch.no_grad():
        for index in progress(plan, len(plan), title):
            batch = run.collate([rows[i] for i in index])
            logits[index] = label_logits(model, last_hidden(model, batch), run.label_ids).float().cpu()
    return logits
