"""Ways of damaging an artifact, and the code that a server refuses each with.

A safetensors file is eight bytes of the header's length (little-endian), the header (JSON: by tensor dtype, shape and
offsets behind the header), and the tensors' bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import reseal

from laplora.artifact.manifest import DISTILLED, GOLDEN, MANIFEST, POSTERIOR, SCORES

ADAPTER = "adapter/adapter_model.safetensors"
ADAPTER_CONFIG = "adapter/adapter_config.json"
#: Every safetensors file of an artifact with every predictive.
TENSOR_FILES = (
    ADAPTER,
    POSTERIOR,
    DISTILLED,
    SCORES,
    "members/1/adapter/adapter_model.safetensors",
    "members/2/adapter/adapter_model.safetensors",
    "members/1/posterior.safetensors",
)


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a safetensors file's header and its tensors' bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    """Return a file with a header, given as JSON text or as an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def cuts(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a file cut at each of its boundaries, each with a name: what was kept."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, _ = split(raw)
    start = 8 + length
    places = {
        "nothing": 0,
        "one byte": 1,
        "length short of a byte": 7,
        "length": 8,
        "first byte of the header": 9,
        "half the header": 8 + length // 2,
        "header short of a byte": start - 1,
        "header": start,
        "first byte of the tensors": start + 1,
        "all but the last byte": len(raw) - 1,
    }
    edges = {start + entry["data_offsets"][1]: name for name, entry in header.items() if name != "__metadata__"}
    places |= {f"up to the end of {name}": edge for edge, name in edges.items() if edge < len(raw)}
    for name, kept in places.items():
        yield name, raw[:kept]
    yield "one byte more", raw + b"\0"


def claims(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a file whose header claims what is not there, each with a name."""
    header, data = split(raw)
    text = raw[8 : len(raw) - len(data)]
    first = min(name for name in header if name != "__metadata__")
    size = len(data)

    def entry(**changes: Any) -> bytes:
        return joined(header | {first: header[first] | changes}, data)

    for length in (2**60, 2**63, 2**64 - 1, 100_000_000, len(raw), len(text) + 1, len(text) - 1, 0):
        yield f"a header of {length} bytes", struct.pack("<Q", length) + raw[8:]
    yield "a shape of 2^60", entry(shape=[2**60])
    yield "a shape whose size overflows", entry(shape=[2**40, 2**40])
    yield "offsets of 2^60", entry(shape=[2**58], data_offsets=[0, 2**60])
    yield "offsets beyond the end", entry(data_offsets=[size, size + header[first]["data_offsets"][1]])
    yield "offsets the wrong way round", entry(data_offsets=header[first]["data_offsets"][::-1])
    yield "a negative offset", entry(data_offsets=[-4, 0])
    yield "a negative shape", entry(shape=[-1])
    yield "an unknown dtype", entry(dtype="F7")
    yield "no shape", joined(header | {first: {"dtype": "F32"}}, data)
    yield "no tensor", joined({k: v for k, v in header.items() if k == "__metadata__"}, b"")
    yield "no object", joined([], data)
    yield "deep nesting", joined(b"[" * 100_000, data)
    yield "no UTF-8", joined(text.replace(b'"dtype"', b'"\xff\xfepe"', 1), data)
    yield "a NaN", joined(text.replace(b'"shape":[', b'"shape":[NaN,', 1), data)
    yield (
        "a name twice",
        joined(text.rstrip()[:-1] + b"," + json.dumps({first: header[first] | {"shape": []}}).encode()[1:], data),
    )


def edit_json(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of an artifact, in place."""
    fields = json.loads((folder / name).read_text(encoding="utf-8"))
    change(fields)
    (folder / name).write_text(json.dumps(fields), encoding="utf-8")


def edit_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a file, in place."""
    with safe_open(folder / name, framework="pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(folder / name)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name, metadata)


def tensors(name: str, change: Callable[[torch.Tensor], torch.Tensor], which: str = "") -> Callable[[Path], None]:
    """Return what changes the first tensor of a file whose name ends so, and seals the artifact again."""

    def damage(folder: Path) -> None:
        def apply(found: dict[str, torch.Tensor]) -> None:
            key = min(k for k in found if k.endswith(which))
            found[key] = change(found[key].clone())

        edit_tensors(folder, name, apply)
        reseal(folder)

    return damage


def first_to(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what sets a tensor's first number."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what changes the manifest, whether or not the result can be one."""
    return lambda folder: edit_json(folder, MANIFEST, change)


def sealed(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what changes another JSON file, and seals the artifact again."""

    def damage(folder: Path) -> None:
        edit_json(folder, name, change)
        reseal(folder)

    return damage


def _text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return what puts something else in a file's place."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have 107 bytes at most
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


def _huge(path: Path) -> None:
    """Make a file of 2^40 bytes that takes no room: whoever reads it whole runs out of memory."""
    with path.open("wb") as file:
        file.truncate(2**40)


def _moved_out(folder: Path) -> None:
    shutil.move(folder / POSTERIOR, folder.parent / "outside")
    (folder / POSTERIOR).symlink_to(folder.parent / "outside")


def _precision(value: object) -> Callable[[Path], None]:
    return manifest(lambda m: m["prior"].update(precision=dict.fromkeys(m["prior"]["precision"], value)))


def _member_precision(value: object) -> Callable[[Path], None]:
    return manifest(
        lambda m: m["members"][0]["prior"].update(precision=dict.fromkeys(m["members"][0]["prior"]["precision"], value))
    )


CORRUPT, INCOMPATIBLE = "artifact_corrupt", "artifact_incompatible"

#: By name: what damages a copy of an artifact with every predictive, and the code it is refused with.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other base weights": (manifest(lambda m: m.update(base_weights_hash="sha256:" + "0" * 64)), INCOMPATIBLE),
    "other tokenizer": (manifest(lambda m: m.update(tokenizer_hash="sha256:" + "0" * 64)), INCOMPATIBLE),
    "the two hashes swapped": (
        manifest(
            lambda m: m.update(base_weights_hash=m["tokenizer_hash"], tokenizer_hash=m["base_weights_hash"]),
        ),
        INCOMPATIBLE,
    ),
    "unknown format": (manifest(lambda m: m.update(format_version=99)), INCOMPATIBLE),
    "precision 0": (_precision(0.0), CORRUPT),
    "precision below 0": (_precision(-1.0), CORRUPT),
    "precision NaN": (_precision(float("nan")), CORRUPT),
    "precision infinite": (_precision(float("inf")), CORRUPT),
    "precision too large for a float": (
        lambda folder: (
            _precision(123456789.0)(folder),
            _text(MANIFEST, "123456789.0", "1e999")(folder),
        ),
        CORRUPT,
    ),
    "no precision": (manifest(lambda m: m["prior"].update(precision={})), CORRUPT),
    "a member's precision 0": (_member_precision(0.0), CORRUPT),
    "a member's precision infinite": (_member_precision(float("inf")), CORRUPT),
    "NaN in the manifest": (manifest(lambda m: m.update(metrics={"nll": float("nan")})), CORRUPT),
    "a threshold of NaN": (
        manifest(lambda m: m["predictives"]["laplace"]["thresholds"]["review"].update(threshold=float("nan"))),
        CORRUPT,
    ),
    "a manifest's name twice": (_text(MANIFEST, "{", '{"labels": ["no", "yes"],'), CORRUPT),
    "a file's name twice": (_text(MANIFEST, '"files": {', f'"files": {{"{GOLDEN}": 3,'), CORRUPT),
    "a huge manifest": (in_place_of(MANIFEST, _huge), CORRUPT),
    "a huge file": (in_place_of(GOLDEN, _huge), CORRUPT),
    "a pipe for the posterior": (in_place_of(POSTERIOR, os.mkfifo), CORRUPT),
    "a device for the posterior": (in_place_of(POSTERIOR, lambda path: path.symlink_to("/dev/zero")), CORRUPT),
    "a socket for the posterior": (in_place_of(POSTERIOR, _socket), CORRUPT),
    "a folder for the posterior": (in_place_of(POSTERIOR, Path.mkdir), CORRUPT),
    "a link out of the folder": (_moved_out, CORRUPT),
    "a link to itself": (in_place_of(POSTERIOR, lambda path: path.symlink_to(path.name)), CORRUPT),
    "a git-lfs pointer": (
        lambda folder: (folder / ADAPTER).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        CORRUPT,
    ),
    "a git-lfs pointer behind its hash": (
        lambda folder: (
            (folder / ADAPTER).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
            reseal(folder),
        ),
        CORRUPT,
    ),
    "an adapter of integers": (tensors(ADAPTER, lambda t: t.long()), CORRUPT),
    "an adapter of another shape": (tensors(ADAPTER, lambda t: t[:1]), CORRUPT),
    "an adapter with NaN": (tensors(ADAPTER, first_to(torch.nan)), CORRUPT),
    "a member with infinity": (tensors("members/2/" + ADAPTER, first_to(torch.inf)), CORRUPT),
    "a member of integers": (tensors("members/2/" + ADAPTER, lambda t: t.long()), CORRUPT),
    "a posterior with NaN": (tensors(POSTERIOR, first_to(torch.nan), ".directions"), CORRUPT),
    "a factor with infinity": (tensors(POSTERIOR, first_to(torch.inf), "factor"), CORRUPT),
    "a factor of integers": (tensors(POSTERIOR, lambda t: t.long(), "factor"), CORRUPT),
    "a factor of another shape": (tensors(POSTERIOR, lambda t: t[:, :-1], "factor"), CORRUPT),
    "distilled with NaN": (tensors(DISTILLED, first_to(torch.nan), "coefficients"), CORRUPT),
    "scores with NaN": (tensors(SCORES, first_to(torch.nan), ".score"), CORRUPT),
    "scores of integers": (tensors(SCORES, lambda t: t.long(), ".score"), CORRUPT),
    "errors of another shape": (tensors(SCORES, lambda t: t[:-1], ".error"), CORRUPT),
    "a rank that would fill the memory": (sealed(ADAPTER_CONFIG, lambda c: c.update(r=10**9)), CORRUPT),
    "a rank for one layer that would fill the memory": (
        sealed(ADAPTER_CONFIG, lambda c: c.update(rank_pattern={"q_proj": 10**9})),
        CORRUPT,
    ),
    "an adapter that changes the base's weights": (
        sealed(ADAPTER_CONFIG, lambda c: c.update(init_lora_weights="pissa")),
        "model_unsupported",
    ),
    "golden inputs that the template does not take": (
        sealed(GOLDEN, lambda g: g["answers"][0].update(inputs={"wrong": "x"})),
        CORRUPT,
    ),
    "golden answers of another model": (
        sealed(GOLDEN, lambda g: g["answers"][0].update(map_probs=g["answers"][0]["map_probs"][::-1])),
        "golden_mismatch",
    ),
    "golden variances of another posterior": (
        sealed(GOLDEN, lambda g: g["answers"][0].update(logit_variance=[30.0, 30.0])),
        "golden_mismatch",
    ),
    "golden variances with NaN": (
        sealed(GOLDEN, lambda g: g["answers"][0].update(logit_variance=[float("nan")] * 2)),
        CORRUPT,
    ),
    "golden answers with NaN": (
        sealed(GOLDEN, lambda g: g["answers"][0].update(map_probs=[float("nan")] * 2)),
        "golden_mismatch",
    ),
}
