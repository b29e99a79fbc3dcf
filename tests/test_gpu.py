"""What only a CUDA device can show: packed 4-bit kernels under autograd, and the default artifact on the device.

    python -m pytest -m gpu

Tolerances are those of bfloat16, see test_predictor.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laplora.jacobians import contrast_jacobians, find_blocks
from laplora.member_outputs import member_outputs
from laplora.predictor import Predictor
from laplora.prompts import EncodedRow, collate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ARTIFACT = Path(__file__).parent.parent / "artifacts" / "sst2-smollm2"


@pytest.fixture(scope="module")
def packed() -> Predictor:
    """The default artifact with its weights in 4 bit."""
    return Predictor.load(ARTIFACT, device="cuda", dequantize=False, verify_golden=False)


@pytest.fixture(scope="module")
def expanded() -> Predictor:
    """The same weights, dequantized."""
    return Predictor.load(ARTIFACT, device="cuda", dequantize=True, verify_golden=False)


def test_golden_answers_recorded_on_a_cpu_are_reproduced(packed: Predictor) -> None:
    packed.verify_golden()


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("rows", [1, 4])
def test_packed_jacobians_are_those_of_the_dequantized_model(
    packed: Predictor, expanded: Predictor, rows: int, tokens: int
) -> None:
    """One row of one token takes bitsandbytes' gemv kernel, which has no backward of its own."""
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(5, 40000, (rows, tokens), generator=generator).tolist()
    batch = collate([EncodedRow(tuple(i), 2) for i in ids], class_count=2, pad_token_id=2).to("cuda")
    label_ids = packed.artifact.manifest.label_token_ids
    found = []
    for predictor in (packed, expanded):
        blocks = find_blocks(predictor._members.model, 2)
        member_outputs(predictor._members, batch, set())  # the order in which a server meets them
        found.append(contrast_jacobians(predictor._members.model, batch, label_ids, blocks))
    for block, one, other in zip(find_blocks(packed._members.model, 2), found[0].blocks, found[1].blocks, strict=True):
        size = float(other.jacobian.norm())
        if tokens == 1 and "q_proj" in block.name:
            continue  # a single token attends to itself only: its queries have no gradient
        assert size > 0
        assert float((one.jacobian - other.jacobian).norm()) < 0.15 * size, block.name


def test_laplace_and_map_agree_on_map(packed: Predictor) -> None:
    rows = [packed.encode({"text": text}, truncate=False) for text in ("dull .", "a joy from start to end .")]
    for one, other in zip(packed.predict(rows, "laplace"), packed.predict(rows, "map"), strict=True):
        assert one.map_probs == pytest.approx(other.map_probs, abs=0.02)
