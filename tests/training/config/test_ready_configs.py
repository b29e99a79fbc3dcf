"""The configurations that come with the project, and the combinations that the documentation promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.harness.architectures import ARCHITECTURES, architecture
from benchmarks.harness.shapes import shape_model
from training.config import RunConfig, config_hash_fields, load_config
from training.data.benchmarks import BENCHMARKS, benchmark_key

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "training" / "configs"
MODELS = ("llama2-7b", "llama3-8b", "phi2", "phi3-mini-128k")
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
#: Names and data sets of the page's table, without that of the files themselves.
TASKS = re.findall(r"\| `([a-z-]+)-MODEL` \| `(\w+)` \|", PAGE)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_a_run_by_its_own_name_and_is_on_the_page(path: Path) -> None:
    """And what a run or an artifact records of it, with every field set, can be read again."""
    config = load_config(path)
    assert config.name == path.stem
    assert config_hash_fields(RunConfig.model_validate(config_hash_fields(config))) == config_hash_fields(config)
    assert f"`{path.name}`" in PAGE


@pytest.mark.parametrize("model", MODELS)
def test_a_large_models_file_is_the_papers_setting(model: str) -> None:
    """Yang et al. (arXiv 2308.13111); every target is a module of the architecture."""
    config = load_config(CONFIGS / f"winogrande-s-{model}.yaml")
    assert config.data.dataset == "winogrande_s"
    adapter, optimizer = config.adapter, config.optimizer
    assert (config.max_tokens, config.base.quantization) == (512, "nf4")
    assert (adapter.rank, adapter.alpha, adapter.dropout) == (8, 16, 0.1)
    assert (optimizer.batch_size, optimizer.steps, optimizer.checkpoint_every) == (6, 2500, 500)
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.weight_decay) == (5e-5, "linear", 0.0)
    assert config.base.model in ARCHITECTURES
    settings = architecture(config.base.model, num_hidden_layers=1)
    shape = shape_model(settings, quantization="none", dtype=torch.bfloat16, rank=8, targets=config.adapter.targets)
    adapted = {name.rpartition(".")[2] for name, module in shape.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(config.adapter.targets)
    assert adapted == {"lm_head"} | ({"qkv_proj"} if "phi3" in model else {"q_proj", "v_proj"})


@pytest.mark.parametrize("model", MODELS)
def test_every_combination_of_the_page_is_a_run(model: str) -> None:
    assert [name for name, _ in TASKS] == ["winogrande-m", "arc-c", "arc-e", "obqa", "boolq"]
    for name, dataset in TASKS:
        overrides = [f"name={name}-{model}", f"data.dataset={dataset}"]
        config = load_config(CONFIGS / f"winogrande-s-{model}.yaml", overrides)
        assert config.run_dir.name == config.name == f"{name}-{model}"
        assert benchmark_key(config.data.dataset) in BENCHMARKS
