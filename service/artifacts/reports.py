"""The reports that artifacts bring along, held while answers are on their way."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from laplora.artifact.report_page import MOST_BYTES, REPORT_PAGE, read_report
from service.errors import ReportNotFoundError

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

#: Most reports whose bytes are held between answers.
_MOST_HELD = 16


class Reports:
    """Reads reports, and holds the bytes of each once, however many answers are still on their way. For one thread."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, bytes] = OrderedDict()

    def read(self, artifact: Artifact) -> bytes:
        """Return an artifact's report, an HTML page that anybody may have written: the same object each time.

        Reads the disk.

        Raises:
            ReportNotFoundError: it has none that can be shown (``laplora.artifact.report_page.read_report``).
        """
        if (content := read_report(artifact)) is None:
            raise ReportNotFoundError(
                f"the artifact brings no report of at most {MOST_BYTES} bytes that is the one its manifest lists: "
                "'python -m training run' makes one; where the folder was replaced meanwhile, load the artifact again"
            )
        digest = artifact.manifest.files[REPORT_PAGE].sha256
        content = self._held.setdefault(digest, content)
        self._held.move_to_end(digest)
        if len(self._held) > _MOST_HELD:
            self._held.popitem(last=False)
        return content
