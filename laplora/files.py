"""Files on disk, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path

#: What a full disk, a quota and a file's largest size say.
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write bytes, or text as UTF-8, in one step: a reader, also after a crash, sees the old content or the new.

    Args:
        mode: the file's permissions, less the process's umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
