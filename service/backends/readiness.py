"""Whether new requests are to be sent here: what the health routes and the metric of it say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laplora.errors import LaploraError
from service.errors import DrainingError

if TYPE_CHECKING:
    from service.artifacts.host import ArtifactHost
    from service.lifecycle import Lifecycle
    from service.scoring.backend import Backend
    from service.scoring.model import Model


def require_ready(artifacts: ArtifactHost, lifecycle: Lifecycle, backend: Backend) -> Model:
    """Return the active model, if new requests are to be sent here. From any thread.

    Raises:
        DeviceFaultError, DeviceStalledError, DrainingError, NotReadyError: they are not.
    """
    model = artifacts.require_taking()
    if lifecycle.leaving:
        raise DrainingError("the server is about to stop: send new requests elsewhere")
    backend.require_responsive()
    return model


def is_ready(artifacts: ArtifactHost, lifecycle: Lifecycle, backend: Backend) -> bool:
    """Return whether new requests are to be sent here."""
    try:
        require_ready(artifacts, lifecycle, backend)
    except LaploraError:
        return False
    return True
