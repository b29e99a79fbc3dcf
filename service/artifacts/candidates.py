"""An artifact that is to answer beside or in the place of others: loaded while they serve, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from laplora.errors import ArtifactError, ArtifactIncompatibleError, DownloadError, LaploraError, ModelError
from service.errors import DeviceFaultError, DrainingError, LoadTimeoutError
from service.scoring.backend import Backend
from service.scoring.model import Model
from service.telemetry.logs import log_crash

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact


def load_candidate(backend: Backend, path: Path, go_on: Callable[[], None]) -> Model:
    """Return a verified artifact while another one serves; ``go_on`` raises where the load was given up.

    Raises:
        ArtifactError, ModelError, DownloadError: it cannot be served, for whatever reason.
        DeviceFaultError, DrainingError, LoadTimeoutError: it is not its fault.
    """
    try:
        return backend.load(path, lambda phase, stage: go_on())
    except (ArtifactError, ModelError, DownloadError, DrainingError, DeviceFaultError, LoadTimeoutError):
        raise
    except LaploraError as error:
        raise ArtifactIncompatibleError(str(error)) from None
    except Exception as error:
        # A broken candidate is no fault of the server: it refuses, logs, and continues.
        log_crash("a candidate artifact could not be loaded", error)
        raise ArtifactIncompatibleError(
            f"the artifact could not be loaded ({type(error).__name__}): the server's log has the details"
        ) from None


def check_base(artifact: Artifact, active: Model) -> None:
    """Check that an artifact is on the active one's base model.

    Raises:
        ArtifactIncompatibleError: it is on another one.
    """
    base, other = artifact.manifest.base, active.artifact.manifest.base
    if base != other:
        raise ArtifactIncompatibleError(
            f"the artifact is on the base model {base}, the loaded ones on {other}: activate it, which sends those away"
        )
