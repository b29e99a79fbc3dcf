"""Artifacts changed at random: each number makes one change of a file's bytes, its tensors, its JSON or its place."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from laplora.artifact.manifest import MANIFEST
from laplora.files.atomic import file_sha256

#: Values that few fields of JSON expect, also in a header of safetensors; and texts that stand for no value.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 0.5, 1e-320, 1e308, -1e308, 2**31, 2**63, -(2**63), 10**400),
    *("", "x", "\0", "\ud800", "..", "/etc/passwd", "{a}{b}", "(.+)+x", "map", "a" * 100_000),
    *([], {}, [[]], [None], {"": {}}, {"a": 1}, {"(.+)+x": 4}, [0] * 1000, ["a", "a"], [1e308]),
    *("BOOL", "I16", "BF16", "F64", "F8_E4M3", "C64", "F7", 2**40, 2**60, 2**64 - 1, [2**60], [0, 2**60], [1] * 70),
)
TEXTS = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 3000 + "]" * 3000, '{"a":1,"a":2}', "tru", "01")
#: Numbers and number formats of a tensor.
NUMBERS = (torch.nan, torch.inf, -torch.inf, 0.0, -1.0, 1e-45, 1e30, -1e30, 1e308, -(2.0**62))
DTYPES = (torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.complex64)
#: Paths that a manifest may name for a file, and where a link may lead.
PATHS = ("../outside.json", "/etc/passwd", "./x", "a\0b", "", ".", "..", "\ud800", "a" * 5000, "x/" * 3000)
LINKS = ("../outside.json", "/dev/zero", "/proc/self/environ", ".", "..", "nowhere")


def seal(folder: Path) -> None:
    """Record digests and sizes of the files as they are, as who changed them could, where the manifest can be read."""
    try:
        fields = json.loads((folder / MANIFEST).read_bytes() if (folder / MANIFEST).is_file() else b"")
        for name, record in fields["files"].items():
            if (folder / name).is_file():
                record.update(sha256=file_sha256(folder / name), size_bytes=(folder / name).stat().st_size)
        (folder / MANIFEST).write_text(json.dumps(fields))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


def other_bytes(raw: bytes, draw: Random) -> bytes:
    """Return bytes with bits flipped, the end cut, or a range repeated, inserted, removed, reversed or overwritten."""
    start, end = sorted(draw.randrange(len(raw) + 1) for _ in range(2))
    end = draw.choice((end, min(end, start + 16)))
    inside = raw[start:end]
    flipped = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 16))):
        flipped[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    new = (inside * 2, draw.randbytes(9) + inside, b"", inside[::-1], draw.choice((b"\0", b"\xff")) * len(inside))
    return draw.choice((bytes(flipped), bytes(flipped), raw[:start], raw[:start] + draw.choice(new) + raw[end:]))


def other_header(raw: bytes, draw: Random) -> bytes:
    """Return a safetensors file whose header says something else of the same bytes."""
    (length,) = struct.unpack("<Q", raw[:8])
    if draw.random() < 0.1:
        return struct.pack("<Q", draw.choice((0, length - 1, length + 1, len(raw), 2**31, 2**63, 2**64 - 1))) + raw[8:]
    header = other_json(raw[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def other_tensor(raw: bytes, draw: Random) -> bytes:
    """Return a safetensors file, well formed, with other numbers, another shape, name or type of one tensor."""
    metadata = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]).get("__metadata__")
    tensors = load(raw)
    one, other = draw.choice(sorted(tensors)), draw.choice(sorted(tensors))
    value, odd, kind = tensors.pop(one), torch.tensor(draw.choice(NUMBERS), dtype=torch.float64), draw.randrange(8)
    flat, matrix = value.flatten().clone(), value.reshape(len(value) if value.dim() and value.numel() else 1, -1)
    place = draw.randrange(max(1, len(flat)))
    flat[place : place + draw.choice((1, len(flat)))] = odd.to(value.dtype)
    empty = value.new_zeros(draw.choice(((), (0,), (0, 2**40), (2, *value.shape))))
    shape = draw.choice((flat, value[None], matrix.T, matrix[:-1], matrix.flip(0).view(value.shape), empty))
    scaled, cast = value * draw.choice((-1, 2, 1e4, 1e20, 1e-20)), value.to(draw.choice(DTYPES))
    if kind < 6:
        tensors[one] = (flat.view(value.shape), flat.view(value.shape), scaled, cast, shape, shape)[kind]
    elif kind == 6:
        tensors[one], tensors[other] = tensors.get(other, value), value
    elif draw.random() < 0.5:
        tensors[draw.choice(("", f"{one}x", other))] = value
    return save({name: each.contiguous().clone() for name, each in tensors.items()}, metadata)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every value inside a value, as what holds it and where."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def other_json(raw: bytes, draw: Random) -> bytes:
    """Return JSON of which one value is another, is missing or is there twice; or text that is no JSON."""
    fields = json.loads(raw)
    places = _places(fields)
    (holder, key), (theirs, place) = draw.choice(places), draw.choice(places)
    value, odd, text, kind = holder[key], draw.choice(VALUES), draw.choice(TEXTS), draw.randrange(9)
    if kind < 3:
        holder[key] = odd
    elif kind == 3:
        holder[key] = json.loads(json.dumps(theirs[place]))
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, list):
        holder.insert(key, draw.choice((value, odd)))
    elif kind == 5:
        holder[draw.choice(("x", "", "\ud800", "map", "../x", "kasa_config", "a" * 10_000))] = odd
    elif kind == 6 and type(value) in (int, float):
        holder[key] *= draw.choice((-1, 10, 1e10, 1e-10, 10**30))
    elif kind == 6:
        holder[key] = f"{value}{odd}"
    else:
        twice = f"{json.dumps(value)}, {json.dumps(key)}: {json.dumps(odd)}"
        holder[key] = "@"
        return json.dumps(fields).replace('"@"', twice if kind == 7 and isinstance(holder, dict) else text).encode()
    return json.dumps(fields).encode()


def displace(folder: Path, name: str, draw: Random) -> None:
    """Put something else in a file's place, or let the manifest name another."""
    file, kind = folder / name, draw.randrange(8)
    fields = json.loads((folder / MANIFEST).read_bytes())
    if kind == 0:
        fields["files"][draw.choice((*PATHS, str(file)))] = fields["files"].pop(name, {})
        (folder / MANIFEST).write_text(json.dumps(fields))
    elif kind == 1:
        file.with_name(draw.choice(("x.bin", ".hidden", "é", "x\n", "adapter_model.bin"))).write_bytes(b"x")
    elif kind == 2:
        os.truncate(file, 2**22)
    elif kind == 3:
        other = folder / draw.choice(sorted(fields["files"]))
        other.write_bytes(file.read_bytes())
    else:
        file.rename(folder.parent / "moved")
        if kind == 4:
            draw.choice((Path.mkdir, os.mkfifo))(file)
        elif kind > 5:
            file.symlink_to(draw.choice((*LINKS, name, folder.parent / "moved")))


def mutate(folder: Path, number: int) -> tuple[str, bool, str]:
    """Change an artifact; the same number does the same. Return the file, whether digests were made to fit, and how."""
    draw = Random(number)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    read = [name for name in names if not name.startswith("report/")]
    name = draw.choice([*read, *read, *read, *[MANIFEST] * 8, draw.choice(names)])
    ways = {".json": [other_json] * 5, ".safetensors": [other_header, other_tensor, other_tensor]}
    way = draw.choice([displace, other_bytes, *ways.get(Path(name).suffix, [])])
    if way is displace:
        displace(folder, name, draw)
    else:
        (folder / name).write_bytes(way((folder / name).read_bytes(), draw))  # type: ignore[operator]
    if sealed := draw.random() < 0.8:
        seal(folder)
    return name, sealed, way.__name__  # type: ignore[attr-defined]
