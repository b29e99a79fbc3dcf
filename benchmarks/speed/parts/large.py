"""Llama-2-7B on random weights of its shapes: the memory of the model, an answer, a fit, and the posterior's file.

NF4, LoRA of rank 8 on q_proj and v_proj, two classes, batches of 8 x 64 tokens. Two layers and four give what each
takes, and so what 32 would; unless the benchmark is to be quick all 32 are built and run too. MB are 10^6 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from safetensors.torch import save

from benchmarks.harness.allocation import peak_bytes
from benchmarks.harness.architectures import architecture
from benchmarks.harness.random_models import random_model
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.shapes import held_bytes
from benchmarks.harness.subject import random_batch
from benchmarks.harness.timing import exactly
from benchmarks.speed.parts.fit import fit, with_posterior
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import Posterior
from laplora.posterior.file import posterior_tensors
from laplora.predictive.batch_outputs import AdaptedModel, BatchOutputs, batch_outputs

LLAMA = "meta-llama/Llama-2-7b-hf"
LAYERS, ROWS, TOKENS, LORA_RANK, EKFAC_RANK = 32, 8, 64, 8, 10
MODEL, ANSWER, FIT = "model", "answer above the model", "fit above the model"
JOINT, EKFAC = "file, joint_core", f"file, ekfac of rank {EKFAC_RANK}"
#: The most that a posterior's file may take.
FILE_MB = 25.0


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield megabytes of 32 layers."""
    few, more = (measured(layers, "cpu") for layers in (2, 4))
    by_layers = {"from 2 and 4": {name: few[name] + (more[name] - few[name]) // 2 * (LAYERS - 2) for name in few}}
    if not quick:
        by_layers["all"] = measured(LAYERS, "cpu")
    for how, sizes in by_layers.items():
        for name, size in sizes.items():
            limit = FILE_MB if name in (JOINT, EKFAC) else None
            yield conditions.record(f"large: {name}, layers: {how}", exactly(size / 1e6), "MB", limit=limit)


def measured(layers: int, device: str, **changes: Any) -> dict[str, int]:
    """Return the bytes that so many layers take; ``changes`` of the architecture."""
    settings = architecture(LLAMA, num_hidden_layers=layers, **changes)
    bare = random_model(settings, device=device, quantization="nf4", rank=LORA_RANK)
    blocks, batches = find_blocks(bare.model, 2), [random_batch(bare, ROWS, TOKENS)] * 2
    adapted = with_posterior(bare, [random_batch(bare, 8, 8)], rank=5)
    made: list[Posterior] = []
    return {
        MODEL: held_bytes(bare.model),
        ANSWER: peak_bytes(answer(adapted, ROWS, TOKENS), device),
        FIT: peak_bytes(lambda: made.append(fit(adapted, blocks, batches, "joint_core")), device),
        JOINT: file_bytes(made[0]),
        EKFAC: file_bytes(fit(adapted, blocks, [random_batch(bare, 2, 2)], "ekfac", rank=EKFAC_RANK)),
    }


def answer(adapted: AdaptedModel, rows: int, tokens: int) -> Callable[[], BatchOutputs]:
    """Return a Laplace answer to random rows."""
    batch = random_batch(adapted, rows, tokens)
    return lambda: batch_outputs(adapted, batch, covariance=True)


def file_bytes(posterior: Posterior) -> int:
    """Return the size of a posterior's file, bases in bfloat16."""
    return len(save(*posterior_tensors(posterior, "bfloat16")))
