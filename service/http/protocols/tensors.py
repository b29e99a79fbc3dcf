"""Tensors of the Open Inference Protocol: as JSON, or as bytes behind the JSON object (Triton's binary tensor data).

Nothing is made as large as a shape says: what came is counted, and compared with the shape.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.errors import BatchTooLargeError, InvalidRequestError
from service.http.schemas.open_inference import V2RequestInput, V2ResponseOutput

Datatype = Literal["BYTES", "FP64", "INT64", "BOOL"]
#: Bytes that say how long a text is.
_LENGTH_BYTES = 4
_FORMATS = {"FP64": "d", "INT64": "q", "BOOL": "?"}


@dataclass(frozen=True)
class Tensor:
    """Entries, row by row, and how many there are along each axis."""

    name: str
    datatype: Datatype
    shape: Sequence[int]
    data: Sequence[Any]

    def as_json(self) -> tuple[V2ResponseOutput, bytes]:
        """Return the tensor with its entries in the JSON object."""
        out = V2ResponseOutput(name=self.name, shape=list(self.shape), datatype=self.datatype, data=list(self.data))
        return out, b""

    def as_bytes(self) -> tuple[V2ResponseOutput, bytes]:
        """Return the tensor without its entries, and those, little-endian."""
        if self.datatype == "BYTES":
            texts = [str(one).encode() for one in self.data]
            raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        else:
            raw = struct.pack(f"<{len(self.data)}{_FORMATS[self.datatype]}", *self.data)
        size = {"binary_data_size": len(raw)}
        return V2ResponseOutput(name=self.name, shape=list(self.shape), datatype=self.datatype, parameters=size), raw


def read_texts(tensor: V2RequestInput, *, most: int) -> list[str]:
    """Return a tensor's texts, row by row.

    Args:
        most: entries of one tensor.

    Raises:
        BatchTooLargeError: the shape says more entries.
        InvalidRequestError: a shape that does not fit the entries, or entries that are no texts in UTF-8.
    """
    count = _entries(tensor, most)
    if isinstance(tensor.data, memoryview):
        texts = _from_bytes(tensor, tensor.data, count)
    elif isinstance(tensor.data, list):
        texts = _flat(tensor, tensor.data, count)
    else:
        raise _wrong(tensor, "has no data: send it as a list, or as bytes with binary_data_size")
    if len(texts) != count:
        raise _wrong(tensor, f"has {len(texts)} entries, its shape {_shown(tensor.shape)} says {count}")
    return texts


def _entries(tensor: V2RequestInput, most: int) -> int:
    if any(size < 1 for size in tensor.shape):
        raise _wrong(tensor, f"has the shape {_shown(tensor.shape)}: each axis needs one entry at least")
    count = math.prod(tensor.shape)
    if count > most:
        raise BatchTooLargeError(
            f"input tensor {_name(tensor)} has the shape {_shown(tensor.shape)}, {most} entries are the most: send it "
            "in parts",
            field="inputs",
            limit=most,
        )
    return count


def _flat(tensor: V2RequestInput, data: list[Any], count: int) -> list[str]:
    texts: list[str] = []
    # No deeper than the shape has axes: the parser's own limit is 200 levels.
    waiting, depth = [iter(data)], len(tensor.shape)
    while waiting:
        for one in waiting[-1]:
            if isinstance(one, list) and len(waiting) < depth:
                waiting.append(iter(one))
                break
            if not isinstance(one, str):
                raise _wrong(tensor, "has an entry that is no text, or is nested deeper than its shape")
            texts.append(one)
        else:
            waiting.pop()
        if len(texts) > count:
            break
    return texts


def _from_bytes(tensor: V2RequestInput, raw: memoryview, count: int) -> list[str]:
    texts: list[str] = []
    start = 0
    while start < len(raw):
        if len(texts) == count:
            raise _wrong(tensor, f"has more entries than its shape {_shown(tensor.shape)} says")
        begin = start + _LENGTH_BYTES
        size = int.from_bytes(raw[start:begin], "little")
        if begin + size > len(raw):
            raise _wrong(tensor, f"entry {len(texts)} is longer than what came of it")
        try:
            texts.append(str(raw[begin : begin + size], "utf-8"))
        except UnicodeDecodeError:
            raise _wrong(tensor, f"entry {len(texts)} is not UTF-8") from None
        start = begin + size
    return texts


def split_body(raw: bytes, header_bytes: int | None) -> tuple[bytes, memoryview]:
    """Return the JSON object of a body and what comes behind it.

    Args:
        header_bytes: length of the JSON object as announced; None: nothing comes behind it.

    Raises:
        InvalidRequestError: more than the body has.
    """
    if header_bytes is None:
        return raw, memoryview(b"")
    if header_bytes > len(raw):
        raise InvalidRequestError(
            f"Inference-Header-Content-Length is {header_bytes}, the body has {len(raw)} bytes",
            field="inference-header-content-length",
        )
    return raw[:header_bytes], memoryview(raw)[header_bytes:]


def attach(value: Any, rest: memoryview) -> None:
    """Give each input tensor of a parsed request that says ``binary_data_size`` its bytes, as ``data``.

    Raises:
        InvalidRequestError: sizes that do not add up to what came, or data sent twice.
    """
    inputs = value.get("inputs") if isinstance(value, dict) else None
    start = 0
    for tensor in inputs if isinstance(inputs, list) else ():
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest) - start:
            raise InvalidRequestError(
                "binary_data_size of an input is no number of bytes that came behind the JSON object",
                field="inputs",
            )
        if "data" in tensor:
            raise InvalidRequestError("an input has both data and binary_data_size: send one", field="inputs")
        tensor["data"] = rest[start : start + size]
        start += size
    if start != len(rest):
        raise InvalidRequestError(
            f"{len(rest)} bytes come behind the JSON object, the inputs' binary_data_size add up to {start}",
            field="inputs",
        )


def _wrong(tensor: V2RequestInput, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"input tensor {_name(tensor)} {what}", field="inputs")


def _name(tensor: V2RequestInput) -> str:
    """Return the name to show: a client may have put its text where a name belongs."""
    return repr(tensor.name) if tensor.name.isidentifier() and len(tensor.name) <= 64 else "?"


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(str(size) if abs(size) < 10**12 else 'too many' for size in shape)}]"
