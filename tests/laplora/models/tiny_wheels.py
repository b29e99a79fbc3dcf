"""Wheels made on the spot, and offline models in them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from laplora.models.offline import OfflineModel
from laplora.models.wheels import Wheel


def build_wheel(folder: Path, name: str, content: bytes, *, package: str = "tinything") -> Wheel:
    """Write a wheel of one file, ``package/name``, that pip accepts and return its pinned description."""
    filename, info = f"{package}-1.0-py3-none-any.whl", f"{package}-1.0.dist-info"
    with zipfile.ZipFile(folder / filename, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{package}/{name}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256((folder / filename).read_bytes()).hexdigest()
    return Wheel(package, "1.0", filename, digest, 1)


def left_in(cache: Path) -> list[str]:
    """Names of all files but the empty lock files."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


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


def offline_model(parts: Sequence[tuple[Wheel, str]], content: bytes) -> OfflineModel:
    """Return the description of a model whose GGUF file is ``content``, in these wheels."""
    return OfflineModel(
        parts=tuple(parts),
        gguf="tiny.gguf",
        gguf_sha256=hashlib.sha256(content).hexdigest(),
        gguf_mb=2,
        licence="MIT",
        source="https://example.org/tiny",
        folder_mb=3,
        memory_mb=4,
        seconds=5,
    )
