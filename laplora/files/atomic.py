"""Files on disk, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: The error numbers of a full disk, a quota and a file that is too large.
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_whole(path: Path, content: str | bytes | Iterable[bytes], *, mode: int = 0o666, new: bool = False) -> None:
    """Write bytes, or text as UTF-8, in one step: a reader, also after a crash, sees the old content or the new.

    Args:
        content: bytes can come one after the other, of which one at a time is in memory.
        mode: the file's permissions, less the process's umask.
        new: whether a file that is there by then stays as it is.

    Raises:
        FileExistsError: ``new``, and a file is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            content = content.encode() if isinstance(content, str) else content
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _link(partial, path)
        else:
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def folder_mode(folder: Path) -> int:
    """Return the permissions that a new folder inside this one gets: what the process's umask leaves."""
    probe = folder / f".{secrets.token_hex(8)}"
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    return mode


def _link(partial: Path, path: Path) -> None:
    """Give a file its name, unless another has it: FileExistsError, in one step where the file system has links."""
    try:
        os.link(partial, path)
        partial.unlink()
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(partial, path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors; the same tensors and metadata give the same bytes."""
    from safetensors.torch import save

    raw = save({k: v.contiguous() for k, v in tensors.items()}, dict(metadata) if metadata else None)
    # The package writes metadata in another order in every process.
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    write_whole(path, raw[:8] + text.ljust(end - 8) + raw[end:])
