"""The artifact that a job was uploaded for, and no other: its content is part of what the result says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from laplora.errors import ArtifactNotFoundError
from service.errors import ArtifactChangedError
from service.scoring import ServiceState, lease

if TYPE_CHECKING:
    from laplora.predictor import Predictor


@contextmanager
def pinned(state: ServiceState, name: str, digest: str) -> Iterator[Predictor]:
    """Yield the predictor of the artifact with this name and digest.

    Inside the block it stays in memory. One that is not loaded may be again: that is to be waited for.

    Raises:
        ArtifactChangedError: it is gone, or of another content.
        ArtifactNotLoadedError, DeviceFaultError, DrainingError, NotReadyError: as ``lease``.
    """
    with ExitStack() as held:
        try:
            predictor = held.enter_context(lease(state, name))
        except ArtifactNotFoundError:
            raise ArtifactChangedError(
                f"the job began on artifact {name!r}, which is gone: upload it again for another"
            ) from None
        if predictor.artifact.digest != digest:
            raise ArtifactChangedError(
                f"the job began on other content of artifact {name!r} than is loaded now: upload it again"
            )
        yield predictor
