"""``python -m benchmarks.gpu`` on a CPU, on a tiny model of the same kind: what it writes and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from benchmarks import gpu
from benchmarks.harness.architectures import ARCHITECTURES
from benchmarks.harness.random_models import random_model
from benchmarks.harness.record import read

pytest.importorskip("bitsandbytes")

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def small(name: str, **changes: Any) -> Any:
    """Return a model's architecture, narrow."""
    fields = ARCHITECTURES[name] | SMALL | changes
    if "rope_scaling" in fields:
        fields |= {"rope_scaling": {"type": "longrope", "long_factor": [2.0] * 16, "short_factor": [1.0] * 16}}
        fields |= {"original_max_position_embeddings": 32}
    return AutoConfig.for_model(**fields)


QUICK = ["--device", "cpu", "--layers", "2", "--quick"]


@pytest.mark.process  # asks git for the commit
def test_one_command_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MODELS", {name: gpu.MODELS[name] for name in ("Phi-2", "Phi-3-mini-128k")})
    monkeypatch.setattr(gpu, "architecture", small)
    monkeypatch.setattr(
        gpu,
        "load_subject",
        lambda _format, device: random_model(
            small("meta-llama/Llama-2-7b-hf", num_hidden_layers=2), device=device, quantization="nf4"
        ),
    )
    assert gpu.main([*QUICK, "--out", str(tmp_path / "new")]) == 0
    values = {r["name"]: r for r in read(tmp_path / "new")}
    shapes = [f"gpu, {model}'s shape, 2 layers, NF4" for model in gpu.MODELS]
    for title in (*shapes, "gpu, default artifact, NF4"):
        for answer in ("MAP", "Laplace"):
            median = values[f"{title}: latency, {answer}, 1 x 16 tokens, median"]
            late = values[f"{title}: latency, {answer}, 1 x 16 tokens, 99th percentile"]
            assert 0 < median["low"] <= median["value"] <= late["value"] <= median["high"]
            assert values[f"{title}: throughput, {answer}, 4 x 16 tokens"]["value"] > 0
            assert values[f"{title}: memory, {answer}, 4 x 16 tokens"]["value"] > 0
        assert values[f"{title}: fit of 4 rows of 16 tokens, 2 a batch"]["value"] > 0
    assert all(values[f"{title}: memory, training step, 6 x 16 tokens"]["value"] > 0 for title in shapes)
    assert not any("the card's" in r["baseline"] for r in values.values())  # a CPU is none
    assert "### gpu, default artifact, NF4" in (tmp_path / "new" / "RESULTS.md").read_text()


@pytest.mark.process
@pytest.mark.parametrize("arguments", [QUICK, QUICK[:-1]])
def test_what_is_no_whole_run_on_a_gpu_leaves_the_published_figures_alone(
    arguments: list[str], scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*run: Any) -> Any:
        return iter([run[3].record("gpu: copy", gpu.exactly(1.0), "GB/s, read and written")])

    monkeypatch.setattr(gpu, "measured", measured)
    assert gpu.main(arguments) == 0
    assert len(read(scratch)) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device is there" in capsys.readouterr().err
