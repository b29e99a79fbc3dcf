"""The hash of a base model's weights: which files it reads, and what changes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from laplora.errors import ModelError
from laplora.models.hashes import weights_hash
from laplora.models.offline import ensure_model

ROOT = Path(__file__).resolve().parents[3]


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
        (None, "has no safetensors weights"),
    ],
)
def test_an_index_that_leads_nowhere(index: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")  # pickled weights do not count
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        weights_hash(str(tmp_path), cache=tmp_path / "cache")


def test_the_default_artifact_keeps_its_base() -> None:
    """Its manifest was written when every safetensors file of a folder counted."""
    manifest = json.loads((ROOT / "artifacts/sst2-smollm2/manifest.json").read_text(encoding="utf-8"))
    assert weights_hash(str(ensure_model("smollm2-135m-instruct"))) == manifest["base_weights_hash"]
