"""A predictor is loaded and verified: its golden answers are replayed, and each predictive answers a first prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laplora.errors import ArtifactError, ArtifactIncompatibleError, DownloadError, LaploraError, ModelError
from service.artifacts.predictors import Library
from service.errors import DeviceFaultError, DrainingError, LoadTimeoutError
from service.scoring.device import Device
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Phase

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.artifact.folder import Artifact
    from laplora.models.base import LoadedBase
    from laplora.predictor import Predictor

#: Default of ``batch_tokens``. A CPU gains nothing from larger batches, and a batch cannot be interrupted;
#: on a GPU, a 7B model's backward pass keeps about 9 MB of activations per token.
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 2048


class Loader:
    """Loads predictors, one at a time; all passes run on the device's thread, between those of requests."""

    def __init__(self, settings: Settings, device: Device, library: Library) -> None:
        self._settings, self._device, self._library = settings, device, library
        self._base: LoadedBase | None = None

    def load(self, path: Path, enter: Callable[[Phase, str], None]) -> Predictor:
        """Return the predictor of the artifact in a folder, verified.

        Args:
            enter: told of each phase, with a stage in words; what it raises ends the load.

        Raises:
            LaploraError: it cannot be served.
            DeviceFaultError, DrainingError: the device takes nothing.
        """
        enter("loading", "loading the artifact and its base model")
        with self._device.latching_faults():
            predictor = self._library.load(path, self._settings, lambda stage: enter("loading", stage))
        how = predictor.reverse_pass
        fields = {"artifact": predictor.artifact.name, "kind": how.kind, "reason": how.reason}
        logger.info("Jacobians are %s: %s", how.kind, how.reason, extra={"event": "reverse_pass", **fields})
        verifying = partial(enter, "verifying", "replaying the golden answers")
        verifying()

        def replay(one_answer: Callable[[], list[Prediction]]) -> list[Prediction]:
            verifying()  # ends a load that was given up
            answers: list[Prediction] = self._device.call(one_answer).result()
            return answers

        # Each answer is a run of its own: requests go between them, and the device is not taken for one that hangs.
        predictor.verify_golden(replay)
        enter("warming_up", "answering a first prompt")
        warm_up = [predictor.encode({"prompt": "Answer:"}, truncate=True)]
        for predictive in predictor.predictives:
            self._device.call(partial(predictor.predict, warm_up, predictive)).result()
        return predictor

    def load_candidate(self, path: Path, go_on: Callable[[], None]) -> Predictor:
        """Return a verified predictor while another one serves; ``go_on`` raises where the load was given up.

        Raises:
            ArtifactError, ModelError, DownloadError: it cannot be served, for whatever reason.
            DeviceFaultError, DrainingError, LoadTimeoutError: it is not its fault.
        """
        try:
            return self.load(path, lambda phase, stage: go_on())
        except (ArtifactError, ModelError, DownloadError, DrainingError, DeviceFaultError, LoadTimeoutError):
            raise
        except LaploraError as error:
            raise ArtifactIncompatibleError(str(error)) from None
        except Exception as error:
            # Whatever is wrong with a candidate, the server is not: it refuses, logs, and goes on.
            log_crash("a candidate artifact could not be loaded", error)
            raise ArtifactIncompatibleError(
                f"the artifact could not be loaded ({type(error).__name__}): the server's log has the details"
            ) from None

    def use(self, predictor: Predictor) -> None:
        """Set what depends on the base model, and log how a new one is held."""
        if self._base is predictor.base:
            return
        self._base = predictor.base
        weights = predictor.weights
        fields = {"event": "weights", "held": weights.held, "reason": weights.reason}
        logger.info("the base's weights are %s: %s", weights.held, weights.reason, extra=fields)
        on_cpu = predictor.device.type == "cpu"
        self._device.token_budget = self._settings.batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS)


def check_base(artifact: Artifact, active: Predictor) -> None:
    """Check that an artifact is on the active one's base model.

    Raises:
        ArtifactIncompatibleError: it is on another one.
    """
    base, other = artifact.manifest.base, active.artifact.manifest.base
    if base != other:
        raise ArtifactIncompatibleError(
            f"the artifact is on the base model {base}, the loaded ones on {other}: activate it, which sends those away"
        )
