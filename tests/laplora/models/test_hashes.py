"""The hash of a base model's weights: which files it reads, and what changes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from head_artifacts import save_tokenizer
from remote_servers import hub_server
from safetensors.torch import load_file, save_file

from laplora.errors import ModelError
from laplora.models.hashes import tokenizer_hash, weights_hash

ROOT = Path(__file__).resolve().parents[3]
SHARD = "model-00001-of-00001.safetensors"

Tensors = dict[str, torch.Tensor]


def write_shards(folder: Path, shards: dict[str, Tensors]) -> str:
    folder.mkdir(exist_ok=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file, {"note": "x"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tensors(tiny_base_folder: Path) -> Tensors:
    return load_file(tiny_base_folder / "model.safetensors")


@pytest.fixture
def whole(tiny_base_folder: Path, cache: Path) -> str:
    """The hash of the tiny base, whose weights are in one file."""
    return weights_hash(str(tiny_base_folder), cache=cache)


def test_the_weights_hash_sees_weights_and_nothing_else(
    tensors: Tensors, tiny_base_folder: Path, whole: str, tmp_path: Path, cache: Path
) -> None:
    """Not which shard holds what, nor files that no index names; a whole file comes before an index, unless told."""
    names = sorted(tensors)
    halves = {"b.safetensors": names[::2], "a.safetensors": names[1::2]}
    shards = {file: {n: tensors[n] for n in part} for file, part in halves.items()}
    folder = write_shards(tmp_path / "sharded", shards)
    stale = {name: tensor + 1 for name, tensor in tensors.items()}  # of an older checkpoint
    save_file(stale, tmp_path / "sharded" / "model-00002-of-00002.safetensors")
    save_file({"tok_embeddings.weight": torch.ones(2)}, tmp_path / "sharded" / "consolidated.safetensors")
    assert weights_hash(folder, cache=cache) == whole
    tensors[names[-1]][0] += 1e-3
    write_shards(tmp_path / "sharded", shards)
    assert weights_hash(folder, cache=cache) != whole
    shutil.copy(tiny_base_folder / "model.safetensors", folder)
    assert weights_hash(folder, cache=cache) == whole
    (tmp_path / "sharded" / "config.json").write_text('{"transformers_weights": "model.safetensors.index.json"}')
    assert weights_hash(folder, cache=cache) != whole


def test_a_cache_that_cannot_be_written_costs_time_alone(tiny_base_folder: Path, whole: str, tmp_path: Path) -> None:
    """As the cache that an image brings, on a root file system that cannot be written."""
    (tmp_path / "weight-hashes").touch()  # root, as which tests may run, is stopped by no permission
    assert weights_hash(str(tiny_base_folder), cache=tmp_path) == whole


def test_of_a_hub_model_the_named_shards_alone_are_fetched(
    tensors: Tensors, whole: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write_shards(tmp_path / "there", {SHARD: tensors})
    save_file({"x": torch.ones(2)}, tmp_path / "there" / "consolidated.safetensors")
    with hub_server("someone/model", monkeypatch) as hub:
        commit = hub.commit({path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()})
        hub.commit({SHARD: b"of a later commit, for which nobody asks"})
        assert weights_hash("someone/model", commit, cache=cache) == whole
    assert not list((tmp_path / "hub").glob("**/consolidated.safetensors"))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "gone.safetensors"}}, "names 'gone.safetensors', which is not there"),
        ({"weight_map": {"x": "../other/model.safetensors"}}, "does not map tensors to safetensors files"),
        ({"weight_map": {"x": "model.bin"}}, "does not map tensors"),
        ({"weight_map": {"x": 3}}, "does not map tensors"),
        ({"weight_map": {}}, "does not map tensors"),
        (None, "has no safetensors weights"),
    ],
)
def test_an_index_that_leads_nowhere(index: Any, message: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")  # pickled weights do not count
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        weights_hash(str(tmp_path), cache=cache)


def test_a_tokenizer_that_was_used_is_the_same(tmp_path: Path) -> None:
    """transformers leaves padding and truncation of the last call in it, as after a training loop."""
    tokenizer = save_tokenizer(tmp_path)
    fresh = tokenizer_hash(tokenizer)
    tokenizer(["a b c", "d"], padding=True, truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_hash(tokenizer) == fresh
    assert tokenizer.backend_tokenizer.truncation is not None
