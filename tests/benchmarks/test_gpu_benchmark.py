"""``python -m benchmarks.gpu`` on a CPU, on a tiny model of the same kind: what it writes and refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.harness.llama7b import random_llama
from benchmarks.harness.record import read

pytest.importorskip("bitsandbytes")

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
QUICK = ["--device", "cpu", "--layers", "2", "--quick"]


@pytest.mark.process  # asks git for the commit
def test_one_command_writes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LLAMA_2_7B", SHAPE)
    tiny = partial(random_llama, 2, device="cpu", quantization="nf4", shape=SHAPE)
    monkeypatch.setattr(gpu, "load_subject", lambda _format, _device: tiny())
    assert gpu.main([*QUICK, "--out", str(tmp_path / "new")]) == 0
    records = json.loads((tmp_path / "new" / "results.json").read_text())
    by_name = {r["name"]: r for r in records}
    for title in ("gpu, Llama-2-7B's shape, 2 layers, NF4", "gpu, default artifact, NF4"):
        for answer in ("MAP", "Laplace"):
            median = by_name[f"{title}: latency, {answer}, 1 x 16 tokens, median"]
            late = by_name[f"{title}: latency, {answer}, 1 x 16 tokens, 99th percentile"]
            assert 0 < median["low"] <= median["value"] <= late["value"] <= median["high"]
            for rows in (2, 4):
                assert by_name[f"{title}: throughput, {answer}, {rows} x 16 tokens"]["value"] > 0
        assert {f"{title}: {c} classes, 2 x 16 tokens" for c in (2, 4)} <= set(by_name)
    assert {r["measured"]["command"] for r in records} == {
        f"python -m benchmarks.gpu {' '.join(QUICK)} --out {tmp_path / 'new'}"
    }
    assert not any("peak memory" in name for name in by_name)  # torch keeps no account of a CPU's
    assert "#### gpu, default artifact, NF4" in (tmp_path / "new" / "RESULTS.md").read_text()


@pytest.mark.process
@pytest.mark.parametrize("arguments", [QUICK, QUICK[:-1], [*QUICK[:2], "--layers", "32"]])
def test_what_is_no_whole_run_on_a_gpu_leaves_the_published_figures_alone(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.provenance, "SCRATCH", tmp_path)
    monkeypatch.setattr(
        gpu, "measured", lambda *run: iter([run[-1].record("gpu: copy", gpu.exactly(1.0), "GB/s, read and written")])
    )
    before = (gpu.FOLDER / "results.json").read_bytes()
    assert gpu.main(arguments) == 0
    assert (gpu.FOLDER / "results.json").read_bytes() == before
    assert len(read(tmp_path)) == 1


def test_without_a_gpu_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no CUDA device is there" in captured.err
    assert "--device cpu --layers 2 --quick" in captured.err
    assert gpu.main(["--device", "cuda"]) == 2
    assert "there is none: use 'cpu'" in capsys.readouterr().err
