"""The report that an artifact brings along: read as its manifest has it, and as nothing else."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

REPORT_PAGE = "report/report.html"
#: Most bytes of a report that is shown: ten times one of this version.
MOST_BYTES = 2**20


def has_report(artifact: Artifact) -> bool:
    """Return whether an artifact brings a report that can be shown."""
    record = artifact.manifest.files.get(REPORT_PAGE)
    return record is not None and record.size_bytes <= MOST_BYTES


def read_report(artifact: Artifact) -> bytes | None:
    """Return an artifact's report, an HTML page that anybody may have written; None: it brings none, or another than
    its manifest lists. Reads the disk."""
    if not has_report(artifact):
        return None
    record, path = artifact.manifest.files[REPORT_PAGE], artifact.path / REPORT_PAGE
    content = b""
    try:
        if path.is_file():  # a pipe would keep whoever opens it waiting
            with path.open("rb") as file:
                content = file.read(record.size_bytes + 1)
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == record.sha256 else None
