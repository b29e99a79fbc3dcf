"""What only a CUDA device can show: packed 4-bit kernels under autograd, and the default artifact on the device.

    python -m pytest -m gpu

Tolerances are those of bfloat16, see test_predictor.py.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from alike_runs import check_alike, check_measured_alike
from tiny_runs import sentiment_config

from benchmarks.harness.architectures import architecture
from benchmarks.harness.provenance import ARTIFACT
from benchmarks.harness.random_models import random_model
from benchmarks.harness.subject import random_batch
from benchmarks.speed.parts.fit import with_posterior
from benchmarks.speed.parts.large import LLAMA
from laplora.jacobians.attention import attention_gradients
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.models.spread import Spread
from laplora.predictive.batch_outputs import AdaptedModel, batch_outputs
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow, collate
from laplora.readouts.label_tokens import LabelTokens
from training.__main__ import main as job
from training.config import load_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


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
    label_ids = packed.artifact.manifest.readout.token_ids
    found = []
    for predictor in (packed, expanded):
        blocks = find_blocks(predictor._adapted.model, 2)
        batch_outputs(predictor._adapted, batch, covariance=False)  # the order in which a server meets them
        found.append(contrast_jacobians(predictor._adapted.model, batch, label_ids, blocks))
    for block, one, other in zip(find_blocks(packed._adapted.model, 2), found[0].blocks, found[1].blocks, strict=True):
        size = float(other.jacobian.norm())
        if tokens == 1 and "q_proj" in block.name:
            continue  # a single token attends to itself only: its queries have no gradient
        assert size > 0
        assert float((one.jacobian - other.jacobian).norm()) < 0.15 * size, block.name


@pytest.mark.parametrize("padded", [False, True])
def test_the_reverse_pass_through_packed_weights_is_the_automatic_one(padded: bool) -> None:
    """Two layers of Llama-2-7B's shape in NF4, three contrasts; each pass rounds to bfloat16 in its own order."""
    adapted = random_model(architecture(LLAMA, num_hidden_layers=2), device="cuda", quantization="nf4", classes=4)
    batch = random_batch(adapted, 4, 40, padded=padded)
    blocks = find_blocks(adapted.model, 4)
    written, automatic = (
        contrast_jacobians(adapted.model, batch, adapted.readout, blocks, automatic=automatic)
        for automatic in (False, True)
    )
    for block, one, other in zip(blocks, written.blocks, automatic.blocks, strict=True):
        size = float(other.jacobian.norm())
        assert size > 0
        assert float((one.jacobian - other.jacobian).norm()) < 0.05 * size, block.name


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.03)])
def test_attention_gradients_of_the_cards_kernels(dtype: torch.dtype, tolerance: float, padded: bool) -> None:
    """Against the written-out ones in float64 on the CPU; a row's first tokens may be padding, which sees nothing.

    float32 may be computed in TF32, of 10 bits; bfloat16 has 8, in the output and in the probabilities.
    """
    draw = torch.Generator().manual_seed(0)
    rows, heads, groups, tokens, size, contrasts = 3, 8, 4, 48, 64, 2

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    query, gradient = random(rows, heads, tokens, size), random(contrasts, rows, heads, tokens, size)
    key, value = (random(rows, groups, tokens, size) for _ in range(2))
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(rows, 1, -1, -1).clone()
    if padded:
        mask[0, :, :, :16] = False
        gradient[:, 0, :, :16] = 0
    expected = attention_gradients(*(t.double() for t in (query, key, value)), mask, size**-0.5, gradient.double())
    on_card = mask.cuda() if padded else None
    found = attention_gradients(*(t.cuda() for t in (query, key, value)), on_card, size**-0.5, gradient.cuda())
    for one, other in zip(found, expected, strict=True):
        assert float((one.cpu().double() - other).norm()) < tolerance * float(other.norm())


def test_a_row_in_a_padded_batch_is_answered_as_alone_and_its_map_is_that_of_map(packed: Predictor) -> None:
    rows = [packed.encode({"text": "dull . " * count}, truncate=False) for count in (1, 12)]
    plain = packed.predict(rows, "map")
    for together, of_map, row in zip(packed.predict(rows, "laplace"), plain, rows, strict=True):
        (alone,) = packed.predict([row], "laplace")
        assert together.probs == pytest.approx(alone.probs, abs=0.1)
        assert together.logit_variance == pytest.approx(alone.logit_variance, rel=0.2)
        assert together.map_probs == pytest.approx(of_map.map_probs, abs=0.02)


def test_a_fit_on_the_card_is_the_one_on_the_cpu() -> None:
    """A joint core of Llama's kind in bfloat16: variances of new rows, up to the noise of a backward pass."""
    narrow = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    here = random_model(architecture(LLAMA, num_hidden_layers=2, **narrow), device="cpu", quantization="none")
    there = copy.deepcopy(here.model).cuda()
    found = []
    for model in (here.model, there):
        bare = AdaptedModel(model, {}, LabelTokens((100, 101)))
        batch = random_batch(bare, 4, 24, padded=True)
        adapted = with_posterior(bare, [batch])
        found.append(batch_outputs(adapted, batch, covariance=True).covariance)
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("dequantize", [False, True])
def test_a_base_over_two_gpus_is_that_on_one(dequantize: bool) -> None:
    """Answers, Jacobians and where they lie; weights in 4 bit, and expanded."""
    one, two = (
        Predictor.load(ARTIFACT, device=place, dequantize=dequantize, verify_golden=False)
        for place in ("cuda:0", Spread.of("balanced"))
    )
    assert len(two.devices) == 2
    two.verify_golden()
    rows = [one.encode({"text": "dull . " * count}, truncate=False) for count in (1, 5, 12)]
    mine, theirs = one.jacobians(rows), two.jacobians(rows)
    where = {str(part.jacobian.device) for part in theirs.blocks}
    assert where == {"cuda:0", "cuda:1"}
    for block, part, other in zip(one.posterior.blocks, mine.blocks, theirs.blocks, strict=True):
        size = float(part.jacobian.norm())
        assert float((part.jacobian.cpu() - other.jacobian.cpu()).norm()) <= 0.05 * size, block.name
    for answer, same in zip(one.predict(rows, "laplace"), two.predict(rows, "laplace"), strict=True):
        assert same.probs == pytest.approx(answer.probs, abs=0.1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_run_over_two_gpus_ends_in_an_artifact(tmp_path: Path, tiny_base_folder: Path) -> None:
    """Fine-tuned, fitted, measured and packaged, its two layers on a GPU each; in float32 the figures are one GPU's."""
    places = {"model.embed_tokens": 0, "lm_head": 0, "model.rotary_emb": 0, "model.layers.0": 0}
    places |= {"model.layers.1": 1, "model.norm": 1}
    folders = []
    spread = ["--set", "base.device=auto", "--set", f"base.device_map={json.dumps(places)}"]
    for name, flags in (("one", ["--set", "base.device=cuda:0"]), ("two", spread)):
        (tmp_path / name).mkdir()
        file = sentiment_config(tmp_path / name, tiny_base_folder)
        assert job(["run", "--config", str(file), *flags]) == 0
        folders.append(load_config(file).run_dir)
    check_alike(*folders)
    check_measured_alike(*folders)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_torchrun_gives_each_process_a_gpu(tmp_path: Path, tiny_base_folder: Path) -> None:
    folders = []
    for processes in ("1", "2"):
        (tmp_path / processes).mkdir()
        file = sentiment_config(tmp_path / processes, tiny_base_folder)
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m", "training"]
        subprocess.run([sys.executable, *command, "run", "--config", file, "--set", "base.device=cuda"], check=True)
        folders.append(load_config(file).run_dir)
    check_alike(*folders)
