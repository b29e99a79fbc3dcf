"""What every run of a job works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.artifacts.host import ArtifactHost
from service.jobs.ledger import Ledger
from service.jobs.metrics import Measuring
from service.jobs.records import Job
from service.scoring.scorer import Scorer
from service.settings import Settings


@dataclass(frozen=True)
class Means:
    """What every run works with; the last are called when another chunk may begin, a job ended, the server stops."""

    settings: Settings
    scorer: Scorer
    artifacts: ArtifactHost
    ledger: Ledger
    measuring: Measuring
    look: Callable[[], None]
    forget: Callable[[Job], None]
    stop: Callable[[], None]
