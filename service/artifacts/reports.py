"""The report that an artifact brings along: read as its manifest has it, and as nothing else."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from laplora.artifact.manifest import REPORT_PAGE
from service.errors import ReportNotFoundError

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

#: Most bytes of a report that is shown: ten times one of this version.
MOST_BYTES = 2**20
#: Most reports whose bytes are held between answers.
_MOST_HELD = 16


def has_report(artifact: Artifact) -> bool:
    """Return whether an artifact brings a report that can be shown."""
    record = artifact.manifest.files.get(REPORT_PAGE)
    return record is not None and record.size_bytes <= MOST_BYTES


def read_report(artifact: Artifact) -> bytes:
    """Return an artifact's report, an HTML page that anybody may have written. Reads the disk.

    Raises:
        ReportNotFoundError: it has none, or one that is too large, or what is there is not what its manifest lists.
    """
    if not has_report(artifact):
        raise ReportNotFoundError(
            f"the artifact brings no report of at most {MOST_BYTES} bytes: 'python -m training run' makes one"
        )
    record, path = artifact.manifest.files[REPORT_PAGE], artifact.path / REPORT_PAGE
    try:
        # A pipe would keep whoever opens it waiting.
        content = b""
        if path.is_file():
            with path.open("rb") as file:
                content = file.read(record.size_bytes + 1)
    except OSError:
        content = b""
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ReportNotFoundError(
            "the report on disk is not the one of the artifact that is listed: it was changed or replaced meanwhile; "
            "load the artifact again"
        )
    return content


class Reports:
    """Reads reports, and holds the bytes of each once, however many answers are still on their way. For one thread."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, bytes] = OrderedDict()

    def read(self, artifact: Artifact) -> bytes:
        """Return an artifact's report as ``read_report`` does: the same object each time.

        Raises:
            ReportNotFoundError: as ``read_report``.
        """
        content = read_report(artifact)
        digest = artifact.manifest.files[REPORT_PAGE].sha256
        content = self._held.setdefault(digest, content)
        self._held.move_to_end(digest)
        if len(self._held) > _MOST_HELD:
            self._held.popitem(last=False)
        return content
