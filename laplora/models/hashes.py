"""Hashes of a base model and its tokenizer, which an artifact records."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from laplora.errors import ModelError
from laplora.files.atomic import write_whole
from laplora.models.wheels import cache_root

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weights_hash(location: str, revision: str | None = None, cache: Path | None = None) -> str:
    """Return ``sha256:`` and the digest of a base model's weights, whatever files hold them.

    Tensors enter by sorted name with dtype, shape and bytes, so resharding does not change the hash. The files are
    those that transformers loads: ``model.safetensors``, or else the shards that the index names. The result is
    remembered per file size and modification time, where the cache can be written.

    Raises:
        ModelError: no safetensors weights, an index that cannot be read, or one that names a file that is not there.
    """
    files = weight_files(location, revision)
    key = hashlib.sha256(
        json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]).encode()
    ).hexdigest()
    note = cache_root(cache) / "weight-hashes" / key
    if note.is_file():
        return note.read_text(encoding="ascii")
    value = "sha256:" + _hash_tensors(files)
    with suppress(OSError):  # a cache that cannot be written, as one in an image: it is computed at each load
        write_whole(note, value)
    return value


def weight_files(location: str, revision: str | None = None) -> list[Path]:
    """Return the files that hold a checkpoint's weights, fetched if they are on the hub; raises as ``weights_hash``."""

    def folder_with(*names: str) -> Path:
        if Path(location).is_dir():
            return Path(location)
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(location, revision=revision, allow_patterns=list(names)))

    named = _named_weights(folder_with("config.json", WHOLE, INDEX))
    names = (WHOLE, INDEX) if named is None else (named,)
    folder = folder_with(*names)
    present = next((folder / name for name in names if (folder / name).is_file()), None)
    if present is None:
        raise ModelError(f"base model {location!r} has no safetensors weights; laplora loads no pickled ones")
    if not present.name.endswith(".index.json"):
        return [present]
    shards = indexed_shards(present, location)
    folder = folder_with(*shards)
    files = [folder / shard for shard in shards]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"base model {location!r}: {present.name} names {missing[0]!r}, which is not there: fetch it again"
        )
    return files


def _named_weights(folder: Path) -> str | None:
    """Return the file that the configuration names for the weights, if it names one."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def indexed_shards(index: Path, location: str) -> list[str]:
    """Return the names of an index's shards, each once, in order of name; ModelError where it names others."""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not shards or any(s != Path(s).name or not s.endswith(".safetensors") for s in shards):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(
            f"base model {location!r}: {index.name} does not map tensors to safetensors files of its folder: fetch it "
            "again"
        ) from None
    return sorted(shards)


def _hash_tensors(files: Sequence[Path]) -> str:
    from safetensors import safe_open

    owners: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            owners.update(dict.fromkeys(handle.keys(), file))
    digest = hashlib.sha256()
    for name in sorted(owners):
        with safe_open(owners[name], framework="pt") as handle:
            tensor = handle.get_tensor(name).contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Return ``sha256:`` and the digest of the tokenizer's vocabulary, merges and processing.

    How the last call padded and cut, which transformers leaves in it, does not count.
    """
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None or backend.padding is not None:
        backend = copy.deepcopy(backend)
        backend.no_truncation()
        backend.no_padding()
    state = backend.to_str()
    return "sha256:" + hashlib.sha256(state.encode()).hexdigest()
