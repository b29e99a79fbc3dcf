"""The tools of every run of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.artifacts.host import ArtifactHost
from service.jobs.reading.measuring import Measuring
from service.jobs.store.ledger import Ledger
from service.jobs.store.records import Job, ReadRow
from service.scoring.scorer import Scorer
from service.settings import Settings


@dataclass(frozen=True)
class Tools:
    """The tools of every run; the last are called when another chunk may begin, a job ended, the server stops."""

    settings: Settings
    scorer: Scorer
    artifacts: ArtifactHost
    read_uploaded: ReadRow
    ledger: Ledger
    measuring: Measuring
    look: Callable[[], None]
    forget: Callable[[Job], None]
    stop: Callable[[], None]
