"""Ways of damaging an artifact, and the code that a server refuses each with.

A safetensors file is eight bytes of the header's length (little-endian), the header (JSON: by tensor dtype, shape and
offsets behind the header), and the tensors' bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import reseal

from laplora.artifact.manifest import FAMILIARITY, GOLDEN, MANIFEST, POSTERIOR, SCORES

ADAPTER = "adapter/adapter_model.safetensors"
ADAPTER_CONFIG = "adapter/adapter_config.json"
#: Every safetensors file of an artifact with every predictive.
TENSOR_FILES = (ADAPTER, POSTERIOR, FAMILIARITY, SCORES)


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


Damage = Callable[[Path], object]


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Return what changes a JSON file of an artifact; of the manifest whether or not the result can be one."""

    def damage(folder: Path) -> None:
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        change(fields)
        (folder / name).write_text(json.dumps(fields), encoding="utf-8")
        if name != MANIFEST:
            reseal(folder)

    return damage


def replaced(name: str, old: str, new: str) -> Damage:
    """Return what changes a text of the manifest or of another file."""

    def damage(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    """Return what changes the tensors of a file, and seals the artifact again."""

    def damage(folder: Path) -> None:
        with safe_open(folder / name, framework="pt") as handle:
            metadata = handle.metadata()
        save_file({k: v.contiguous() for k, v in change(load_file(folder / name)).items()}, folder / name, metadata)
        reseal(folder)

    return damage


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor], which: str = "") -> Damage:
    """Return what changes the first tensor of a file whose name ends so, and seals the artifact again."""

    def of_first(of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = min(k for k in of if k.endswith(which))
        return of | {key: change(of[key].clone())}

    return tensors(name, of_first)


def first_to(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what sets a tensor's first number."""

    def change(values: torch.Tensor) -> torch.Tensor:
        values.view(-1)[0] = value
        return values

    return change


def in_place_of(name: str, make: Damage) -> Damage:
    """Return what puts something else in a file's place."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def in_turn(*damages: Damage) -> Damage:
    """Return what does several damages, one after the other."""
    return lambda folder: [damage(folder) for damage in damages]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):  # a path may have 107 bytes at most
        bound.bind(path.name)


def _huge(path: Path) -> None:
    """Make a file of 2^40 bytes that takes no room: whoever reads it whole runs out of memory."""
    with path.open("wb") as file:
        file.truncate(2**40)


def _lfs_pointer(folder: Path) -> None:
    (folder / ADAPTER).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _precision(value: float) -> Damage:
    def change(fields: dict[str, Any]) -> None:
        prior = fields["prior"]
        prior["precision"] = dict.fromkeys(prior["precision"], value)

    return edited(MANIFEST, change)


def _first_golden(**changes: Any) -> Damage:
    return edited(GOLDEN, lambda golden: golden["answers"][0].update(changes))


OTHER_HASH, NAN, INFINITY = "sha256:" + "0" * 64, float("nan"), float("inf")
ONE_GROUP = {"granularity": "group", "precision": {"lora_A": 1.0}}

#: By code and name: what damages a copy of an artifact with every predictive, so that it is refused with that code.
BY_CODE: dict[str, dict[str, Damage]] = {
    "artifact_incompatible": {
        "other base weights": edited(MANIFEST, lambda m: m.update(base_weights_hash=OTHER_HASH)),
        "other tokenizer": edited(MANIFEST, lambda m: m.update(tokenizer_hash=OTHER_HASH)),
        "unknown format": edited(MANIFEST, lambda m: m.update(format_version=99)),
    },
    "artifact_corrupt": {
        "precision 0": _precision(0.0),
        "precision below 0": _precision(-1.0),
        "precision NaN": _precision(NAN),
        "precision infinite": _precision(INFINITY),
        "precision too large for a float": in_turn(_precision(123456789.0), replaced(MANIFEST, "123456789.0", "1e999")),
        "no precision of a group": edited(
            MANIFEST, lambda m: m["prior"].update(granularity="group", precision=ONE_GROUP)
        ),
        "no precision": edited(MANIFEST, lambda m: m["prior"].update(precision={})),
        "NaN in the manifest": edited(MANIFEST, lambda m: m.update(metrics={"nll": NAN})),
        "a threshold of NaN": edited(
            MANIFEST, lambda m: m["predictives"]["laplace"]["thresholds"]["review"].update(threshold=NAN)
        ),
        "a manifest's name twice": replaced(MANIFEST, "{", '{"labels": ["no", "yes"],'),
        "a file's name twice": replaced(MANIFEST, '"files": {', f'"files": {{"{GOLDEN}": 3,'),
        "a huge manifest": in_place_of(MANIFEST, _huge),
        "a huge file": in_place_of(GOLDEN, _huge),
        "a pipe for the posterior": in_place_of(POSTERIOR, os.mkfifo),
        "a device for the posterior": in_place_of(POSTERIOR, lambda path: path.symlink_to("/dev/zero")),
        "a socket for the posterior": in_place_of(POSTERIOR, _socket),
        "a folder for the posterior": in_place_of(POSTERIOR, Path.mkdir),
        "a link to itself": in_place_of(POSTERIOR, lambda path: path.symlink_to(path.name)),
        "a git-lfs pointer behind its hash": in_turn(_lfs_pointer, reseal),
        "an adapter of integers": tensor(ADAPTER, torch.Tensor.long),
        "an adapter of another shape": tensor(ADAPTER, lambda t: t[:1]),
        "an adapter with NaN": tensor(ADAPTER, first_to(NAN)),
        "an adapter with infinity": tensor(ADAPTER, first_to(INFINITY)),
        "a posterior with NaN": tensor(POSTERIOR, first_to(NAN), ".directions"),
        "a factor with infinity": tensor(POSTERIOR, first_to(INFINITY), "factor"),
        "familiarity with NaN": tensor(FAMILIARITY, first_to(NAN), ".center"),
        "scores with NaN": tensor(SCORES, first_to(NAN), ".score"),
        "scores of integers": tensor(SCORES, torch.Tensor.long, ".score"),
        "errors of another shape": tensor(SCORES, lambda t: t[:-1], ".error"),
        "an adapter without a tensor": tensors(ADAPTER, lambda of: {name: of[name] for name in of if name != min(of)}),
        "an adapter of one more module": tensors(ADAPTER, lambda of: of | {f"{min(of)}x": torch.zeros(4, 64)}),
        "a rank that would fill the memory": edited(ADAPTER_CONFIG, lambda c: c.update(r=10**9)),
        "a rank for one layer that would fill the memory": edited(
            ADAPTER_CONFIG, lambda c: c.update(rank_pattern={"q_proj": 10**9})
        ),
        "golden inputs that the template does not take": _first_golden(inputs={"wrong": "x"}),
        "golden variances with NaN": _first_golden(logit_variance=[NAN] * 2),
    },
    "model_unsupported": {
        "an adapter that changes the base's weights": edited(
            ADAPTER_CONFIG, lambda c: c.update(init_lora_weights="pissa")
        ),
        "a base that is nowhere": edited(MANIFEST, lambda m: m.update(base_model="/nowhere/at/all")),
    },
    "golden_mismatch": {
        "other quantization": edited(MANIFEST, lambda m: m.update(quantization="nf4")),
        "an adapter of other weights": tensors(ADAPTER, lambda of: {name: 1.5 * of[name] for name in of}),
        "golden answers of another model": edited(GOLDEN, lambda g: g["answers"][0]["map_probs"].reverse()),
        "golden variances of another posterior": _first_golden(logit_variance=[30.0, 30.0]),
        "golden answers with NaN": _first_golden(map_probs=[NAN] * 2),
    },
}
#: By name: the damage and its code.
DAMAGES = {name: (damage, code) for code, damages in BY_CODE.items() for name, damage in damages.items()}
