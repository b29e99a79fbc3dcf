"""Base models and adapters that lie elsewhere: fetched by their known names, and loaded as those of a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from head_artifacts import pack_several
from huggingface_hub import close_session
from remote_servers import hub_server

from laplora.artifact.encoders import check_sizes
from laplora.artifact.fetched import push_artifact
from laplora.artifact.folder import FETCHED, read_artifact
from laplora.encoder import Encoder
from laplora.errors import ConfigError, DownloadError, ModelError, StoreUnreachableError
from laplora.models.base import BaseSpec, locate_base
from laplora.models.checkpoints import check_hub_size, fetch_checkpoint
from laplora.predictor import Predictor
from laplora.remote.address import parse_address
from laplora.remote.objects import ObjectStore


def put(folder: Path, url: str) -> None:
    files = {path.name: path for path in folder.iterdir()}
    ObjectStore(parse_address(url)).write(files, next(iter(files)))


def save_base(folder: Path) -> Path:
    """Write a folder with what a base model's has, and what no one asks for."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "modeling_evil.py"):
        (folder / name).write_text(f"{{}} {name}")
    return folder


def test_a_base_is_its_known_files_in_their_present_state(s3: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    put(base, "s3://models/base")
    first = Path(locate_base(BaseSpec("s3://models/base"), tmp_path / "cache"))
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (first / "config.json").read_text() == "{} config.json"
    assert Path(locate_base(BaseSpec("s3://models/base"), tmp_path / "cache")) == first
    (base / "model.safetensors").write_text("{} another.safetensors")
    put(base, "s3://models/base")
    second = Path(locate_base(BaseSpec("s3://models/base"), tmp_path / "cache"))
    assert second != first
    assert (second / "model.safetensors").read_text() == "{} another.safetensors"
    # A stopped call had whole files, and the half of one that does not count.
    partial = second.with_name(f".{second.name}.partial")
    second.rename(partial)
    (partial / "tokenizer.json").rename(partial / ".tokenizer.json")
    (partial / ".tokenizer.json").write_text("{")
    assert fetch_checkpoint("s3://models/base", "base", cache=tmp_path / "cache") == second
    assert sorted(path.name for path in second.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_shards_are_those_of_the_index_and_what_is_no_checkpoint_is_refused(s3: str, tmp_path: Path) -> None:
    base, shards = save_base(tmp_path / "base"), ("model-1.safetensors", "model-2.safetensors")
    put(base, "s3://models/large")
    with pytest.raises(DownloadError, match="more than 10: --max-base-bytes"):
        fetch_checkpoint("s3://models/large", "base", cache=tmp_path / "cache", most_bytes=10)
    assert not list((tmp_path / "cache").glob("checkpoints/*/config.json"))
    (base / "model.safetensors").unlink()
    for name in shards:
        (base / name).write_text(name)
    put(base, "s3://models/unindexed")
    for number in (2, 3):
        weight_map = {"a": "model-1.safetensors", "b": f"model-{number}.safetensors"}
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        put(base, f"s3://models/sharded-{number}")
    folder = fetch_checkpoint("s3://models/sharded-2", "base", cache=tmp_path / "cache")
    assert {*shards} < {path.name for path in folder.iterdir()}
    for name, kind, says in (
        ("sharded-3", "base", "model-3"),
        ("unindexed", "base", "no safetensors weights"),
        ("nowhere", "base", "no base model at"),
        ("nowhere", "adapter", "no adapter at"),
    ):
        with pytest.raises(ModelError, match=says):
            fetch_checkpoint(f"s3://models/{name}", kind, cache=tmp_path / "cache")  # type: ignore[arg-type]
    for url in ("https://host/base?key=hidden", "http://127.0.0.1/base", f"s3://models/base#sha256={'0' * 64}"):
        with pytest.raises(ConfigError) as refused:
            locate_base(BaseSpec(url), tmp_path)
        assert "hidden" not in str(refused.value)


def test_a_base_and_an_adapter_of_the_hub_are_those_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    base = save_base(tmp_path / "base")
    files = {f"sub/{path.name}": path.read_bytes() for path in base.iterdir()}
    adapter = {name: name.encode() for name in ("adapter_config.json", "adapter_model.safetensors", "adapter.pkl")}
    with hub_server("owner/name", monkeypatch) as hub:
        commit = hub.commit(files | adapter)
        hub.commit({"sub/config.json": b"another"})
        said: list[str] = []
        with pytest.raises(DownloadError, match="more than 10: --max-base-bytes"):
            fetch_checkpoint(f"hf://owner/name@{commit}/sub", "base", progress=said.append, most_bytes=10)
        assert not list((tmp_path / "hub").glob("*/snapshots/*/*"))
        with pytest.raises(DownloadError, match=r"'owner/name' has .* more than 10"):
            check_hub_size("owner/name", commit, most_bytes=10)
        check_hub_size("owner/name", None)
        heads: Any = SimpleNamespace(base_model=str(base), revision=None, encoder=SimpleNamespace(name="owner/name"))
        check_sizes(tmp_path / "heads", heads, 10)  # one's own
        (tmp_path / FETCHED).touch()
        with pytest.raises(DownloadError, match=r"'owner/name' has .* more than 10"):
            check_sizes(tmp_path / "heads", heads, 10)
        said.clear()
        folder = fetch_checkpoint(f"hf://owner/name@{commit}/sub", "base", progress=said.append)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert (folder / "config.json").read_text() == "{} config.json"
        assert commit in said[0]
        folder = fetch_checkpoint("hf://owner/name", "adapter", progress=said.append)
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(adapter)[1:]
        with pytest.raises(ModelError, match=r"config\.json"):
            fetch_checkpoint("hf://owner/name", "base", progress=said.append)
    # The hub is away: a commit does not change, and of a branch there is the last copy.
    close_session()
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))  # between its tries
    said.clear()
    pinned = f"hf://owner/name@{commit}/sub"
    assert (fetch_checkpoint(pinned, "base", progress=said.append) / "config.json").read_text() == "{} config.json"
    assert said == []
    assert fetch_checkpoint("hf://owner/name", "adapter", progress=said.append) == folder
    assert [line.startswith("warning: ") and hub.branches["main"] in line for line in said] == [True]
    (folder / "adapter_config.json").unlink()
    with pytest.raises(DownloadError, match="the hub does not"):  # what is not whole any more is no copy
        fetch_checkpoint("hf://owner/name", "adapter", progress=said.append)
    for lost in ("hf://owner/name/sub", f"hf://owner/name@{'0' * 40}/sub"):
        with pytest.raises(DownloadError, match="the hub does not"):
            fetch_checkpoint(lost, "base", progress=said.append)


def test_an_artifact_and_its_base_from_a_store_answer_as_from_folders(s3: str, tmp_path: Path) -> None:
    artifact = pack_several(tmp_path)
    fields = json.loads((artifact / "manifest.json").read_bytes())
    base = Path(fields["base_model"])
    put(base, "s3://models/tiny")
    there = tmp_path / "there"
    shutil.copytree(artifact, there)
    (there / "manifest.json").write_text(json.dumps(fields | {"base_model": "s3://models/tiny"}))
    pinned = push_artifact(read_artifact(there), parse_address("s3://models/several"))

    def probabilities(where: str | Path, **options: Any) -> list[torch.Tensor]:
        predictor = Predictor.load(where, device="cpu", cache_dir=tmp_path / "cache", **options)
        row = predictor.encode({"text": "a b c d"}, truncate=True)
        return [torch.tensor(prediction.arrays.probs) for prediction in predictor.predict([row])]

    # Who only encodes needs no weights.
    encoder = Encoder.of_folder(there, cache_dir=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/checkpoints/*/*.safetensors"))
    assert encoder.encode({"text": "a b"}, truncate=True).token_ids
    for one, other in zip(probabilities(pinned), probabilities(artifact), strict=True):
        assert torch.equal(one, other)
    assert list(tmp_path.glob("cache/checkpoints/*/*.safetensors"))
    # What it is pinned by is known of the copy: the store is not asked, for the tokenizer neither.
    with pytest.MonkeyPatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away.setattr("laplora.remote.objects._TRIES", 0)
        said: list[str] = []
        assert probabilities(pinned, progress=said.append)
        assert Encoder.of_folder(there, cache_dir=tmp_path / "cache", progress=said.append).class_count
        assert not [line for line in said if "warning" in line]
        # Of a base that nothing pins there is the last copy.
        last = locate_base(BaseSpec("s3://models/tiny"), tmp_path / "cache", said.append)
        assert Path(last).is_relative_to(tmp_path / "cache")
        assert said[-1].startswith("warning: s3://models/tiny: the store does not give")
        for unknown in (BaseSpec("s3://models/another"), BaseSpec("s3://another/tiny")):
            with pytest.raises(StoreUnreachableError):
                locate_base(unknown, tmp_path / "cache")
        for file in (tmp_path / "cache" / "checkpoints").glob("*/model.safetensors"):
            file.unlink()
        with pytest.raises(StoreUnreachableError):
            probabilities(pinned)
