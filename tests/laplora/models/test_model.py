"""Base models and adapters: what is refused by name, and the label read-out against the whole vocabulary's."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, Architecture, tiny_base, tiny_model, tiny_task
from tiny_runs import FinishedRun

from laplora.errors import ArtifactCorruptError, ModelError
from laplora.jacobians.contrasts import find_blocks
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model, load_tokenizer, resolve_device
from laplora.models.hashes import weights_hash
from laplora.models.lora import lora_layers
from laplora.models.offline import ensure_model
from laplora.models.readout import label_logits, label_mass, last_hidden
from training.finetune import save_adapter

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


def peft(config: Any, base: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, about what it is asked to do here
        return get_peft_model(base or tiny_base("llama"), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, r"q_proj uses a LoRA variant \(such as DoRA\)"),
        ({"modules_to_save": ["norm"]}, r"retrains whole modules \(\['norm'\]\)"),
        ({"bias": "all"}, "trains biases; set bias='none'"),
        ({"bias": "lora_only"}, "trains biases"),
        ({"lora_bias": True}, "trains biases"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens is an embedding with LoRA"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "sets trainable_token_indices"),
    ],
)
def test_an_adapter_the_posterior_would_not_cover_is_refused(options: dict[str, Any], message: str) -> None:
    model = peft(LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options))
    with pytest.raises(ModelError, match=message):
        lora_layers(model)


def test_another_kind_of_adapter_is_refused() -> None:
    model = peft(IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="the adapter is of the kind IA3; only LoRA is covered"):
        lora_layers(model)


def test_a_refused_adapter_is_refused_from_its_folder_too(tmp_path: Path) -> None:
    peft(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="DoRA"):
        attach_adapter(tiny_base("llama"), tmp_path)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_label_logits_are_rows_of_the_whole_logits(architecture: Architecture, tied: bool) -> None:
    """Against the model's own forward over the vocabulary, lm_head's adapter and padding included; float64."""
    model, task = tiny_model(architecture, tied=tied), tiny_task(examples=6)
    batch = task.batch()
    with torch.no_grad():
        hidden = last_hidden(model, batch)
        got = label_logits(model, hidden, task.label_ids)
        whole = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
        ).logits[:, -1]
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, whole[:, task.label_ids], rtol=1e-12, atol=1e-12)
        with model.disable_adapter():
            plain = label_logits(model, last_hidden(model, batch), task.label_ids)
            again = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
            ).logits[:, -1]
        torch.testing.assert_close(plain, again[:, task.label_ids], rtol=1e-12, atol=1e-12)
        assert float((plain - got).abs().max()) > 1e-3
        mass = label_mass(model, hidden, task.label_ids, batch.class_mask)
        probs = whole.softmax(-1)[:, task.label_ids].masked_fill(~batch.class_mask, 0).sum(-1)
        # label_mass computes in float32
        torch.testing.assert_close(mass.double(), probs, rtol=1e-5, atol=1e-7)


def test_lm_heads_block_has_label_rows_only() -> None:
    blocks = {b.name: b for b in find_blocks(tiny_model("llama", tied=True), 3)}
    assert (blocks["lm_head.lora_B"].wide, blocks["lm_head.lora_B"].narrow) == (3, 3)
    assert blocks["lm_head.lora_A"].wide == 16


def test_a_base_is_frozen_and_evaluated(tiny_base_folder: Path) -> None:
    model = load_base_model(str(tiny_base_folder), BaseSpec("x", None, "none", "float32"), device=CPU)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_dequantized_weights_are_the_4_bit_ones(tiny_base_folder: Path) -> None:
    """Float32 activations: the same weights in the same products, so only the order of sums may differ."""
    spec = BaseSpec("x", None, "nf4", "float32")
    plain, packed = (
        load_base_model(str(tiny_base_folder), spec, device=CPU, dequantize=dequantize) for dequantize in (True, False)
    )
    original = load_base_model(str(tiny_base_folder), BaseSpec("x", None, "none", "float32"), device=CPU)
    assert not any(type(m).__name__ == "Linear4bit" for m in plain.modules())
    assert any(type(m).__name__ == "Linear4bit" for m in packed.modules())
    tokens = torch.arange(100, 112)[None]
    with torch.no_grad():
        one, two, exact = (m(input_ids=tokens).logits for m in (plain, packed, original))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert float((one - exact).abs().max()) > 1e-2  # and quantization did something


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cuda"])
def test_a_device_that_is_not_there(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ModelError, match="device"):
        resolve_device(device)


@pytest.mark.parametrize("place", ["/nowhere/at/all", "empty"])
def test_a_base_that_is_not_there(tmp_path: Path, place: str) -> None:
    location = str(tmp_path) if place == "empty" else place
    with pytest.raises(ModelError, match=f"base model '{location}': no tokenizer can be loaded"):
        load_tokenizer(location)
    with pytest.raises(ModelError, match=f"base model '{location}': no causal language model can be loaded"):
        load_base_model(location, BaseSpec(location, None, "none", "float32"), device=CPU)


def write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]]) -> str:
    """Write a sharded checkpoint with its index, and return the folder."""
    folder.mkdir(exist_ok=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file, {"note": "x"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return str(folder)


def test_the_weights_hash_sees_weights_and_nothing_else(tiny_base_folder: Path, tmp_path: Path) -> None:
    one = weights_hash(str(tiny_base_folder), cache=tmp_path / "cache")
    tensors = load_file(tiny_base_folder / "model.safetensors")
    names = sorted(tensors)
    halves = {
        "b.safetensors": {n: tensors[n] for n in names[::2]},
        "a.safetensors": {n: tensors[n] for n in names[1::2]},
    }
    sharded = write_shards(tmp_path / "sharded", halves)
    assert weights_hash(sharded, cache=tmp_path / "cache") == one
    tensors[names[-1]][0] += 1e-3
    write_shards(tmp_path / "sharded", halves)
    assert weights_hash(sharded, cache=tmp_path / "cache") != one


def test_files_that_no_index_names_are_not_hashed(tiny_base_folder: Path, tmp_path: Path) -> None:
    """A shard left over from an older checkpoint, of the same names, and a copy in another format."""
    one = weights_hash(str(tiny_base_folder), cache=tmp_path / "cache")
    tensors = load_file(tiny_base_folder / "model.safetensors")
    folder = write_shards(tmp_path / "sharded", {"model-00001-of-00001.safetensors": tensors})
    stale = {name: tensor + 1 for name, tensor in tensors.items()}
    save_file(stale, tmp_path / "sharded" / "model-00002-of-00002.safetensors")
    save_file({"tok_embeddings.weight": torch.ones(2)}, tmp_path / "sharded" / "consolidated.safetensors")
    assert weights_hash(folder, cache=tmp_path / "cache") == one


def test_a_whole_file_comes_before_an_index(tiny_base_folder: Path, tmp_path: Path) -> None:
    """As transformers loads it; so the hash of a checkpoint of one file is what it was."""
    one = weights_hash(str(tiny_base_folder), cache=tmp_path / "cache")
    folder = write_shards(tmp_path / "both", {"model-00001-of-00001.safetensors": {"x": torch.ones(2)}})
    shutil.copy(tiny_base_folder / "model.safetensors", folder)
    assert weights_hash(folder, cache=tmp_path / "cache") == one
    (tmp_path / "both" / "config.json").write_text('{"transformers_weights": "model.safetensors.index.json"}')
    assert weights_hash(folder, cache=tmp_path / "cache") != one


def test_of_a_hub_model_the_named_shards_alone_are_fetched(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(tiny_base_folder / "model.safetensors")
    write_shards(tmp_path / "hub", {"model-00001-of-00001.safetensors": tensors})
    save_file({"x": torch.ones(2)}, tmp_path / "hub" / "consolidated.safetensors")
    (tmp_path / "hub" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "here").mkdir()

    def fetch(location: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (location, revision) == ("someone/model", "main")
        for name in allow_patterns:
            if (tmp_path / "hub" / name).is_file():
                shutil.copy(tmp_path / "hub" / name, tmp_path / "here")
        return str(tmp_path / "here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = weights_hash("someone/model", "main", cache=tmp_path / "cache")
    assert found == weights_hash(str(tiny_base_folder), cache=tmp_path / "cache")
    assert not (tmp_path / "here" / "consolidated.safetensors").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "gone.safetensors"}}, "names 'gone.safetensors', which is not there"),
        (
            {"weight_map": {"x": "../other/model.safetensors"}},
            "does not map tensors to safetensors files of its folder",
        ),
        ({"weight_map": {"x": "model.bin"}}, "does not map tensors"),
        ({"weight_map": {"x": 3}}, "does not map tensors"),
        ({"weight_map": {}}, "does not map tensors"),
        ({}, "does not map tensors"),
        ([], "does not map tensors"),
    ],
)
def test_an_index_that_leads_nowhere(index: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        weights_hash(str(tmp_path), cache=tmp_path / "cache")


def test_the_default_artifact_keeps_its_base() -> None:
    """Its manifest was written when every safetensors file of a folder counted."""
    manifest = json.loads((ROOT / "artifacts/sst2-smollm2/manifest.json").read_text(encoding="utf-8"))
    assert weights_hash(str(ensure_model("smollm2-135m-instruct"))) == manifest["base_weights_hash"]


def test_pickled_weights_are_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="has no safetensors weights"):
        weights_hash(str(tmp_path), cache=tmp_path / "cache")


def test_the_adapter_of_a_tied_head_holds_no_embedding(sentiment_run: FinishedRun) -> None:
    """peft would save the embedding next to an adapted lm_head: 12 MB here, gigabytes for a real model."""
    file = sentiment_run.artifact / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    vocabulary, rank, hidden = 49152, 4, 64
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (vocabulary, rank)
    assert file.stat().st_size < 1.1 * 4 * vocabulary * rank < 4 * vocabulary * hidden / 10


def test_an_adapter_comes_back_with_the_same_logits(tmp_path: Path) -> None:
    model, task = tiny_model("llama", tied=True, dtype=torch.float32), tiny_task(examples=4)
    save_adapter(model, tmp_path)
    again = attach_adapter(tiny_base("llama", tied=True), tmp_path)
    with torch.no_grad():
        one, two = (label_logits(m, last_hidden(m, task.batch()), task.label_ids) for m in (model, again))
    assert torch.equal(one, two)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3


def test_the_adapter_of_another_base_is_refused(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sentiment_run.artifact / "adapter", tmp_path / "adapter"))
    with pytest.raises(ArtifactCorruptError, match="does not load on this base"):
        attach_adapter(tiny_base("llama"), folder)
