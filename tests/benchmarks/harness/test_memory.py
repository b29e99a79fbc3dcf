"""The memory meter, and the size of a posterior."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_task

from benchmarks.harness.allocation import peak_bytes
from benchmarks.speed.parts import large
from benchmarks.speed.parts.fit import STRUCTURES, fit
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.file import posterior_tensors
from laplora.predictive.batch_outputs import AdaptedModel
from laplora.readouts.label_tokens import LabelTokens

TINY = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def test_the_peak_is_exact_and_leaves_out_what_was_there_before() -> None:
    def known(before: list[torch.Tensor]) -> torch.Tensor:
        """Hold 3 MB, then 2.5, then 1 and what is returned, 1; let go of what was there before."""
        before.clear()
        first, second = torch.empty(250_000), torch.empty(500_000)
        del first
        many = [torch.empty(250) for _ in range(500)]
        del second, many
        return torch.empty(250_000)

    large = [torch.zeros(5_000_000)]
    assert peak_bytes(lambda: known(large)) <= 3_000_000
    assert peak_bytes(lambda: known([])) == 3_000_000
    assert peak_bytes(lambda: torch.empty(100)) == 400  # what is returned counts
    assert peak_bytes(lambda: None) == 0


def size_of(structure: str, *, rows: int = 24, rank: int = 4, **model: Any) -> int:
    """Return the bytes of a fitted tiny posterior's tensors."""
    lora = tiny_model("llama", targets=["q_proj", "v_proj"], **model)
    blocks, task = find_blocks(lora, 3), tiny_task(examples=rows)
    adapted = AdaptedModel(lora, {}, LabelTokens(tuple(task.label_ids)))
    posterior = fit(adapted, blocks, list(task.batches(8)), structure, rank=rank, joint_rank=10)
    tensors, _ = posterior_tensors(posterior, "bfloat16")
    return sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_posterior_takes_k_times_d_in_every_block(structure: str) -> None:
    """Whatever the rows; width and rank enter at most linearly."""
    found = size_of(structure)
    assert size_of(structure, rows=9) == found
    assert found < size_of(structure, hidden=32) < 2 * found
    assert found < size_of(structure, rank=8) < 2.01 * found  # the joint factor's columns are twice as many at most


def test_large_is_measured() -> None:
    """On a tiny shape: what a fit and an answer hold, and files a header longer than their tensors."""
    two, four = (large.measured(layers, "cpu", **TINY) for layers in (2, 4))
    assert set(two) == {large.MODEL, large.ANSWER, large.FIT, large.JOINT, large.EKFAC}
    assert all(0 < two[name] < four[name] for name in two)
