"""Jacobians through bitsandbytes NF4 weights against the reference on the same weights, dequantised."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dense_reference as dense
import pytest
import torch
from fast_path import by_key
from tiny_models import TARGETS, Task, add_lora, tiny_base, tiny_task

from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.models.base import BaseSpec, load_base_model

bitsandbytes = pytest.importorskip("bitsandbytes")

# float32 activations through two layers of width 64 against float64 ones: some tens of roundings of 6e-8, and
# transformers computes its RMS norms and rotary tables in float32. Relative to the largest entry of a block.
FLOAT32 = 2e-5
# bfloat16 activations keep 8 bits: 4e-3 each, some tens of them in a row, partly cancelling; sums in another order.
BFLOAT16 = 0.08


@dataclass(frozen=True)
class Quantized:
    """A folder with a tiny model and the reference's Jacobians for its dequantised NF4 weights."""

    folder: Path
    targets: list[str]
    task: Task
    logits: torch.Tensor
    jacobians: dict[dense.Key, torch.Tensor]


def load(folder: Path, targets: list[str], *, dtype: str = "float32", dequantize: bool = False) -> Any:
    """Return the 4-bit model with its adapter as it serves: in float32 and without gradients of its own."""
    spec = BaseSpec(model=str(folder), quantization="nf4", dtype=dtype)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        base = load_base_model(str(folder), spec, device=torch.device("cpu"), dequantize=dequantize).model
    model = add_lora(base, targets, dtype=None)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    return model.requires_grad_(False).eval()


#: 4-bit matrices in two layers of each kind; lm_head is left as it is.
MATRICES = {"llama": 14, "phi": 12, "phi3": 8, "qwen3": 14, "olmo2": 14, "gemma3": 14}


@pytest.fixture(scope="module", params=MATRICES)
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """The dequantised weights are put into a plain float64 model, matrix by matrix."""
    folder = tmp_path_factory.mktemp(request.param)
    targets = TARGETS.get(request.param, TARGETS["llama"])
    plain = tiny_base(request.param, hidden=64)
    plain.save_pretrained(folder)
    packed = dict(load(folder, targets).get_base_model().named_modules())
    count = 0
    for name, module in plain.named_modules():
        other = packed.get(name)
        other = getattr(other, "base_layer", other)
        if isinstance(other, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(other.weight.data, other.weight.quant_state)
            module.weight.data = weight.reshape(module.weight.shape)
            count += 1
    assert count == MATRICES[request.param]
    model, task = add_lora(plain, targets), tiny_task(examples=4)
    for weight in dense.block_weights(model).values():
        weight.data = weight.data.float().double()
    of = (model, task.batch(), task.label_ids)
    return Quantized(folder, targets, task, dense.map_logits(*of), dense.jacobians(*of))


def assert_jacobians_match(model: Any, expected: Quantized, indices: list[int], tolerance: float) -> None:
    """Assert that one batch of rows has the reference's logits and Jacobians, and that none has vanished."""
    task = expected.task
    blocks = find_blocks(model, task.classes)
    found = contrast_jacobians(model, task.batch(indices), task.label_ids, blocks)
    q = contrasts(task.classes)
    logits = expected.logits[indices]
    torch.testing.assert_close(found.logits.double(), logits, rtol=0, atol=tolerance * float(logits.abs().max()))
    mine = by_key(found.blocks, blocks)
    for key, jacobian in expected.jacobians.items():
        contrast = torch.einsum("ncab,cd->ndab", jacobian[indices], q)
        # A one-token row has no attention to shape, so its queries have no gradient.
        largest = float(contrast.abs().max())
        one_token_query = largest < 1e-12
        assert one_token_query == (key.module.endswith("q_proj") and indices == [2])
        if not one_token_query:
            assert mine[key].jacobian.abs().max() > 0.5 * largest, f"{key} has lost its gradient"
        scale = max(float(expected.jacobians[key].abs().max()), largest)
        torch.testing.assert_close(mine[key].jacobian.double(), contrast, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dequantize", [False, True])
def test_four_bit_jacobians_match_dequantised(quantized: Quantized, dequantize: bool) -> None:
    """A batch, one row and one token; after a forward without gradients too, at which weights may be repacked.

    On CPUs with AVX512-BF16 bitsandbytes does that (seen in 0.50), and the backward pass then silently stops at every
    such layer.
    """
    model = load(quantized.folder, quantized.targets, dequantize=dequantize)
    assert any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in model.modules()) != dequantize
    for _ in range(2):
        for indices in ([0, 1, 2, 3], [0], [2]):
            assert_jacobians_match(model, quantized, indices, FLOAT32)
        with torch.no_grad():
            dense.class_logits(model, quantized.task.batch([0]), quantized.task.label_ids)


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [2]], ids=["batch", "one token"])
def test_bfloat16_four_bit_stays_near_bfloat16_dequantised(quantized: Quantized, indices: list[int]) -> None:
    """Not compared with float64: weights rounded to bfloat16 first fall on other 4-bit values."""
    task, found = quantized.task, []
    for dequantize in (False, True):
        model = load(quantized.folder, quantized.targets, dtype="bfloat16", dequantize=dequantize)
        with torch.no_grad():
            dense.class_logits(model, task.batch(indices), task.label_ids)
        blocks = find_blocks(model, task.classes)
        found.append(by_key(contrast_jacobians(model, task.batch(indices), task.label_ids, blocks).blocks, blocks))
    for key, block in found[0].items():
        largest = found[1][key].jacobian.abs().max()
        if not (key.module.endswith("q_proj") and indices == [2]):
            assert block.jacobian.abs().max() > 0.5 * largest > 0, f"{key} has lost its gradient"
        most = BFLOAT16 * max(float(largest), 1e-3)
        torch.testing.assert_close(block.jacobian, found[1][key].jacobian, rtol=0, atol=most)
