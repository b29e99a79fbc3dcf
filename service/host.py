"""Which artifact answers: loaded in the background, verified on the device, swapped in one assignment.

A request keeps the predictor it was tokenized for, so a swap drops nothing: what was queued before it is
still scored by the old artifact, what comes after by the new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laplora.errors import (
    ArtifactError,
    ArtifactIncompatibleError,
    ArtifactNotFoundError,
    DownloadError,
    LaploraError,
    ModelError,
)
from service.engine import Engine, settle
from service.errors import ActivationRunningError, DrainingError, NotReadyError
from service.logs import log_crash, logger
from service.metrics import Metrics, Phase
from service.settings import Settings

if TYPE_CHECKING:
    from laplora.artifact import Artifact
    from laplora.predictor import Predictor

Progress = Callable[[str], None]

#: Default of ``batch_tokens``. A CPU gains nothing from larger batches, and a batch cannot be interrupted;
#: on a GPU, a 7B model's backward pass keeps about 9 MB of activations per token.
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Library:
    """The two library calls the host makes; tests put fakes here.

    Attributes:
        load: returns a predictor, its golden answers not yet verified.
        read: returns an artifact without loading its base model.
    """

    load: Callable[[Path, Settings, Progress], Predictor]
    read: Callable[[Path], Artifact]


def default_library() -> Library:
    """Return the real calls; importing torch and transformers waits until the first of them."""

    def load(path: Path, settings: Settings, progress: Progress) -> Predictor:
        from laplora.predictor import Predictor

        return Predictor.load(
            path,
            device=settings.device,
            cache_dir=settings.cache,
            verify_golden=False,
            dequantize=settings.dequantize_weights,
            progress=progress,
        )

    def read(path: Path) -> Artifact:
        from laplora.artifact import read_artifact

        return read_artifact(path)

    return Library(load, read)


class ArtifactHost:
    """Holds the active predictor and replaces it.

    Args:
        on_failure: called in the loading thread when the first artifact cannot be loaded.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        metrics: Metrics,
        library: Library,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._library = library
        self._on_failure = on_failure
        self._changing = threading.Lock()
        self._active: Predictor | None = None
        self.stage = "starting"

    @property
    def active(self) -> Predictor | None:
        """The predictor that answers, None while the first one loads."""
        return self._active

    def require_active(self) -> Predictor:
        """Return the predictor that answers.

        Raises:
            NotReadyError: none does yet; the message names the stage.
        """
        predictor = self._active
        if predictor is None:
            raise NotReadyError(f"no artifact answers yet, stage: {self.stage}")
        return predictor

    def start(self) -> None:
        """Load the configured artifact in a background thread."""
        threading.Thread(target=self._load_first, name="laplora-load", daemon=True).start()

    def activate(self, name: str) -> tuple[Predictor, str | None]:
        """Load, verify and swap in an artifact of the root; return its predictor and the previous one's name.

        Blocks for as long as loading takes. The old artifact answers until the new one has passed.

        Raises:
            ArtifactNotFoundError: no such folder in the root.
            ActivationRunningError: another activation runs.
            ArtifactError, ModelError, DownloadError: the candidate cannot be served.
        """
        self.require_active()
        path = self.path_of(name)
        if not self._changing.acquire(blocking=False):
            raise ActivationRunningError("another activation has not finished: try again later")
        try:
            # Read again under the lock: an activation may have ended since.
            previous = self.require_active()
            if previous.artifact.path.resolve() == path.resolve() and self._same_content(previous, path):
                return previous, previous.artifact.name
            candidate = self._load_candidate(path)
            self._swap(candidate)
            return candidate, previous.artifact.name
        finally:
            self._changing.release()

    def activate_in_background(self, name: str) -> Future[tuple[Predictor, str | None]]:
        """Return a future of :meth:`activate`, run in a thread that cannot hold up the process's exit."""
        future: Future[tuple[Predictor, str | None]] = Future()

        def run() -> None:
            try:
                result = self.activate(name)
            except Exception as error:
                settle(future, error=error)
            else:
                settle(future, result=result)

        threading.Thread(target=run, name="laplora-activate", daemon=True).start()
        return future

    def _load_candidate(self, path: Path) -> Predictor:
        try:
            return self._load_verified(path, lambda phase, stage: None)
        except (ArtifactError, ModelError, DownloadError, DrainingError):
            raise
        except LaploraError as error:
            raise ArtifactIncompatibleError(str(error)) from None
        except Exception as error:
            # Whatever is wrong with a candidate, the server is not: it refuses, logs, and goes on.
            log_crash("a candidate artifact could not be loaded", error)
            raise ArtifactIncompatibleError(
                f"the artifact could not be loaded ({type(error).__name__}): the server's log has the details"
            ) from None

    def path_of(self, name: str) -> Path:
        """Return the folder of an artifact that can be activated by name.

        Raises:
            ArtifactNotFoundError: not the name of a folder in the root.
        """
        active = self._active
        if active is not None and active.artifact.name == name:
            return active.artifact.path
        # Only a listed name is accepted, so no spelling of a path can leave the root.
        found = {path.name: path for path in self._folders()}.get(name)
        if found is None:
            raise ArtifactNotFoundError("no artifact of this name: GET /artifacts lists them")
        return found

    def known(self) -> list[tuple[str, Artifact | LaploraError]]:
        """Return every artifact of the root by name, with the error in place of one that cannot be read.

        The active artifact comes first.
        """
        listing: list[tuple[str, Artifact | LaploraError]] = []
        active = self._active
        if active is not None:
            listing.append((active.artifact.name, active.artifact))
        for path in self._folders():
            if active is not None and path.resolve() == active.artifact.path.resolve():
                continue
            try:
                listing.append((path.name, self._library.read(path)))
            except LaploraError as error:
                listing.append((path.name, error))
        return listing

    def _folders(self) -> list[Path]:
        root = self._settings.artifacts_root
        if not root.is_dir():
            return []
        # Hidden folders are artifacts half written.
        return sorted(p for p in root.iterdir() if not p.name.startswith(".") and (p / "manifest.json").is_file())

    def _same_content(self, predictor: Predictor, path: Path) -> bool:
        return self._library.read(path).digest == predictor.artifact.digest

    def _load_first(self) -> None:
        try:
            with self._changing:
                self._swap(self._load_verified(self._settings.artifact_path, self._enter))
            self._enter("ready", "ready")
        except Exception as error:
            self._enter("failed", f"failed: {type(error).__name__}")
            if isinstance(error, LaploraError):
                logger.error("the artifact cannot be served: %s", error, extra={"event": "load_failed"})
            else:
                log_crash("the artifact could not be loaded", error)
            if self._on_failure is not None:
                self._on_failure(error)

    def _enter(self, phase: Phase, stage: str) -> None:
        """Say how far the start has come: a phase of the closed list, and a stage in words."""
        if stage != self.stage:
            logger.info("start: %s", stage, extra={"event": "stage", "phase": phase, "stage": stage})
        self.stage = stage
        self._metrics.set_phase(phase)

    def _load_verified(self, path: Path, enter: Callable[[Phase, str], None]) -> Predictor:
        enter("loading", "loading the artifact and its base model")
        predictor = self._library.load(path, self._settings, lambda stage: enter("loading", stage))
        enter("verifying", "replaying the golden answers")
        self._engine.call(predictor.verify_golden).result()
        # Whatever the golden file holds, each predictive has answered once before anyone waits for it. On the
        # device thread, like every other pass.
        enter("warming_up", "answering a first prompt")
        warm_up = [predictor.encode({"prompt": "Answer:"}, truncate=True)]
        for predictive in predictor.predictives:
            self._engine.call(partial(predictor.predict, warm_up, predictive)).result()
        return predictor

    def _swap(self, predictor: Predictor) -> None:
        weights = predictor.weights
        logger.info(
            "the base's weights are %s: %s",
            weights.held,
            weights.reason,
            extra={"event": "weights", "held": weights.held, "reason": weights.reason},
        )
        on_cpu = predictor.device.type == "cpu"
        self._engine.token_budget = self._settings.batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS)
        self._active = predictor
        self._metrics.set_active(predictor.artifact.name, predictor.artifact.digest)
        logger.info(
            "artifact is active",
            extra={"event": "activated", "artifact": predictor.artifact.name, "digest": predictor.artifact.digest},
        )
