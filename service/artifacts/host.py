"""Which artifacts answer: loaded in the background, verified on the device, put on the shelf in one step.

A request keeps the predictor it was tokenized for, so a change drops nothing: what was queued before it is
still scored by the old artifact, what comes after by the new one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laplora.errors import (
    ArtifactError,
    ArtifactIncompatibleError,
    ArtifactNotFoundError,
    ConfigError,
    DownloadError,
    LaploraError,
    ModelError,
)
from service.artifacts.bounded_load import BoundedLoads
from service.artifacts.folders import artifact_folder, artifact_folders
from service.artifacts.library import Library
from service.artifacts.listing import ArtifactListing
from service.artifacts.shelf import Place, Shelf
from service.errors import (
    ActivationRunningError,
    ArtifactNotLoadedError,
    DeviceFaultError,
    DrainingError,
    LoadTimeoutError,
    NotReadyError,
)
from service.scoring.engine import Engine
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Metrics, Phase
from service.threads import Threads, in_daemon_thread

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.artifact.folder import Artifact
    from laplora.models.shared_base import LoadedBase
    from laplora.predictor import Predictor

#: Default of ``batch_tokens``. A CPU gains nothing from larger batches, and a batch cannot be interrupted;
#: on a GPU, a 7B model's backward pass keeps about 9 MB of activations per token.
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 2048
#: Seconds in which the disk is to say whether an artifact that is not loaded is there.
LOOK_UP_S = 1.0

_LOADED = {"event": "loaded"}
_ACTIVATED = {"event": "activated"}
_UNLOADED = {"event": "unloaded"}


@dataclass(frozen=True)
class Change:
    """What loading or activating an artifact did.

    Attributes:
        predictor: of the artifact.
        previous: name of the one that was active before.
        unloaded: names of those that went to make room.
    """

    predictor: Predictor
    previous: str | None
    unloaded: tuple[str, ...] = ()


class ArtifactHost:
    """Loads artifacts onto the shelf and takes them off it, one change at a time.

    Args:
        on_failure: called in the loading thread when an artifact to start with cannot be loaded.
        on_change: called after models came into memory or went, in the thread that saw to it.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        metrics: Metrics,
        library: Library,
        threads: Threads,
        on_failure: Callable[[Exception], None] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._library = library
        #: One disk that does not answer keeps neither the other kind of work nor anybody else waiting.
        self._name_threads, self._disk_threads = threads.pool("names", 1), threads.pool("disk", 1)
        self.listing = ArtifactListing(library.read)
        self._on_failure = on_failure
        self._on_change = on_change
        self._changing = threading.Lock()
        self._telling = threading.Lock()
        self._loads = BoundedLoads(settings.load_timeout_s, metrics.set_abandoned_load)
        self.shelf = Shelf(max_artifacts=settings.max_artifacts, max_bytes=settings.max_artifact_bytes)
        self._base: LoadedBase | None = None
        self.stage = "starting"

    @property
    def active(self) -> Predictor | None:
        """The predictor that answers where a request names none; None until all to start with have passed."""
        return self.shelf.active if self.stage == "ready" else None

    @property
    def loaded_digests(self) -> frozenset[str]:
        """Digests of the artifacts that are loaded."""
        return frozenset(place.predictor.artifact.digest for place in self.shelf.places)

    @property
    def stuck_load(self) -> str | None:
        """Name of an artifact whose load was given up and still runs; None where there is none."""
        return self._loads.stuck

    def require_active(self) -> Predictor:
        """Return the predictor that answers where a request names none.

        Raises:
            NotReadyError: none does yet; the message names the stage.
        """
        predictor = self.active
        if predictor is None:
            raise NotReadyError(f"no artifact answers yet, stage: {self.stage}")
        return predictor

    def require_taking(self) -> Predictor:
        """Return the active predictor, if the server takes requests.

        Raises:
            DeviceFaultError, DrainingError, NotReadyError: it does not.
        """
        self._engine.require_open()
        return self.require_active()

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Predictor]:
        """Yield the predictor of a loaded artifact, None for the active one; it stays in memory inside the block.

        Raises:
            DeviceFaultError, DrainingError, NotReadyError: none takes requests.
            ArtifactNotFoundError, ArtifactNotLoadedError: as ``require_loaded``.
        """
        self.require_taking()
        if name is not None:
            await self.require_loaded(name)
        with self.shelf.lease(name) as predictor:
            yield predictor

    async def require_loaded(self, name: str) -> None:
        """Return if an artifact is loaded.

        Only a name that is not is looked for on the disk, and never on the event loop: the disk may not answer.

        Raises:
            ArtifactNotFoundError: no artifact has that name.
            ArtifactNotLoadedError: it is not loaded; where the disk takes more than ``LOOK_UP_S``, it may not exist.
        """
        if self.shelf.find(name) is not None:
            return
        active = self.require_active().artifact.name
        looking = asyncio.get_running_loop().run_in_executor(self._name_threads, self.path_of, name)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(looking, LOOK_UP_S)
        except ArtifactNotFoundError as error:
            raise ArtifactNotFoundError(f"{error}; {active!r} is active") from None
        raise ArtifactNotLoadedError(
            f"the artifact is not loaded: load it, or leave the field out for {active!r}", field="artifact"
        )

    def start(self) -> None:
        """Load the configured artifacts in a background thread."""
        threading.Thread(target=self._load_first, name="laplora-load", daemon=True).start()

    def load(self, name: str) -> Change:
        """Load and verify an artifact of the root, to answer requests that name it.

        Blocks for as long as loading takes. One that is loaded with the same content stays as it is.

        Raises:
            NotReadyError: the first artifact still loads.
            ArtifactNotFoundError: no such folder in the root.
            ActivationRunningError: another change runs.
            LoadTimeoutError: it takes too long; LoadStuckError: an earlier one did, and still runs.
            ShelfFullError: no room beside those in use.
            ArtifactError, ModelError, DownloadError: it cannot be served, or is on another base model than the
                active one.
        """
        return self._change(name, activate=False)

    def activate(self, name: str) -> Change:
        """Make an artifact of the root the one that answers where a request names none, loaded first if it is not.

        Blocks for as long as loading takes. The old one answers until the new one has passed. One on another base
        model sends away every artifact on the old base.

        Raises:
            As ``load``; any base model will do.
        """
        return self._change(name, activate=True)

    def unload(self, name: str) -> Predictor:
        """Take an artifact off the shelf; what is under way is still answered. Return its predictor.

        Raises:
            NotReadyError: the first artifact still loads.
            ArtifactNotLoadedError, ArtifactActiveError: it is not loaded, or the active one.
        """
        self.require_active()
        predictor = self.shelf.remove(name)
        self._tell(_UNLOADED, predictor)
        self._on_change()
        return predictor

    def in_background(self, change: Callable[[str], Change], name: str) -> Future[Change]:
        """Return a future of ``load`` or ``activate``, run in a thread that cannot hold up the process's exit."""
        return in_daemon_thread("laplora-change", lambda: change(name))

    def _change(self, name: str, *, activate: bool) -> Change:
        self.require_active()
        if not self._changing.acquire(blocking=False):
            raise ActivationRunningError("another artifact is being loaded: try again later")
        try:
            # Read again under the lock: a change may have ended since.
            active = self.require_active()
            previous = active.artifact.name
            loaded = self.shelf.find(name)
            # Where a load is stuck, as it is in memory: looking at its files might hang as well.
            if self._loads.stuck and activate and loaded is not None and self.shelf.activate(name):
                self._tell(_ACTIVATED, loaded)
                return Change(loaded, previous)
            path, artifact = self._loads.run(name, lambda go_on: self._found(name))
            loaded = self.shelf.find(artifact.name)
            if loaded is not None and loaded.artifact.digest == artifact.digest:
                if not activate or loaded is active:
                    return Change(loaded, previous)
                if self.shelf.activate(artifact.name):
                    self._tell(_ACTIVATED, loaded)
                    return Change(loaded, previous)
                # Somebody unloaded it since it was found: it is loaded again.
            elif loaded is not None and loaded.artifact.path.resolve() != path.resolve():
                raise ArtifactIncompatibleError(
                    f"another loaded artifact is called {artifact.name!r} as well: unload it first"
                )
            if not activate:
                self._check_base(artifact, active)
                self.shelf.check_room()
            candidate = self._loads.run(name, partial(self._load_candidate, path))
            if not activate and candidate.base is not active.base:
                raise ArtifactIncompatibleError(
                    "the base model on disk is not the one in memory: activate the artifact"
                )
            unloaded = self.shelf.put(candidate, activate=activate)
            self._use(candidate)
            self._tell(_ACTIVATED if activate else _LOADED, candidate)
            self._on_change()
            return Change(candidate, previous, tuple(unloaded))
        finally:
            self._changing.release()

    def _found(self, name: str) -> tuple[Path, Artifact]:
        path = self.path_of(name)
        return path, self._library.read(path)

    def _check_base(self, artifact: Artifact, active: Predictor) -> None:
        base, other = artifact.manifest.base, active.artifact.manifest.base
        if base != other:
            raise ArtifactIncompatibleError(
                f"the artifact is on the base model {base.model!r} ({base.quantization}, {base.dtype}), the loaded "
                f"ones on {other.model!r} ({other.quantization}, {other.dtype}): activate it, which sends those away"
            )

    def _load_candidate(self, path: Path, go_on: Callable[[], None]) -> Predictor:
        try:
            return self._load_verified(path, lambda phase, stage: go_on())
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

    def path_of(self, name: str) -> Path:
        """Return the folder of an artifact that can be loaded by name. Looks at the disk: not for the event loop.

        Raises:
            ArtifactNotFoundError: not the name of a folder in the root.
        """
        loaded = self.shelf.find(name)
        if loaded is not None:
            return loaded.artifact.path
        found = artifact_folder(self._settings.artifacts_root, name)
        if found is None:
            raise ArtifactNotFoundError("no artifact of this name: GET /artifacts lists them")
        return found

    async def known(self) -> list[tuple[str, Artifact | LaploraError, Place | None]]:
        """Return every artifact by name: those on the shelf, the active one first, then the others of the root.

        The error stands in place of one that cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._disk_threads, self._known)

    def _known(self) -> list[tuple[str, Artifact | LaploraError, Place | None]]:
        listing: list[tuple[str, Artifact | LaploraError, Place | None]] = [
            (place.name, place.predictor.artifact, place) for place in self.shelf.places
        ]
        shown = {place.predictor.artifact.path.resolve() for place in self.shelf.places}
        folders = artifact_folders(self._settings.artifacts_root)
        others = {name: path for name, path in folders.items() if path.resolve() not in shown}
        return [*listing, *((name, found, None) for name, found in self.listing.read(others).items())]

    def _load_first(self) -> None:
        try:
            with self._changing:
                self._put_first(self._settings.artifact_path, activate=True)
                for name in self._settings.also_load:
                    if self.shelf.find(name) is None:
                        self._put_first(self.path_of(name), activate=False)
            self._on_change()
            self._enter("ready", "ready")
        except Exception as error:
            self._enter("failed", f"failed: {type(error).__name__}")
            if isinstance(error, LaploraError):
                logger.error("the artifact cannot be served: %s", error, extra={"event": "load_failed"})
            else:
                log_crash("the artifact could not be loaded", error)
            if self._on_failure is not None:
                self._on_failure(error)

    def _put_first(self, path: Path, *, activate: bool) -> None:
        if not activate:
            active = self.shelf.active
            assert active is not None
            self._check_base(self._library.read(path), active)
        predictor = self._load_verified(path, self._enter)
        gone = self.shelf.put(predictor, activate=activate)
        if gone:
            raise ConfigError(f"the artifacts to start with do not fit beside each other: {gone} had to go")
        self._use(predictor)
        self._tell(_ACTIVATED if activate else _LOADED, predictor)

    def _enter(self, phase: Phase, stage: str) -> None:
        """Say how far the start has come: a phase of the closed list, and a stage in words."""
        if stage != self.stage:
            logger.info("start: %s", stage, extra={"event": "stage", "phase": phase, "stage": stage})
        self.stage = stage
        self._metrics.set_phase(phase)

    def _load_verified(self, path: Path, enter: Callable[[Phase, str], None]) -> Predictor:
        enter("loading", "loading the artifact and its base model")
        with self._engine.latching_faults():
            predictor = self._library.load(path, self._settings, lambda stage: enter("loading", stage))
        how = predictor.reverse_pass
        logger.info(
            "Jacobians are %s: %s",
            how.kind,
            how.reason,
            extra={
                "event": "reverse_pass",
                "artifact": predictor.artifact.name,
                "kind": how.kind,
                "reason": how.reason,
            },
        )
        verifying = partial(enter, "verifying", "replaying the golden answers")
        verifying()

        def replay(one_answer: Callable[[], list[Prediction]]) -> list[Prediction]:
            verifying()  # ends a load that was given up
            answers: list[Prediction] = self._engine.call(one_answer).result()
            return answers

        # Each answer is a run of the device of its own: requests go between them, and however many there are, the
        # device is not taken for one that hangs.
        predictor.verify_golden(replay)
        # Whatever the golden file holds, each predictive has answered once before anyone waits for it. On the
        # device thread, like every other pass.
        enter("warming_up", "answering a first prompt")
        warm_up = [predictor.encode({"prompt": "Answer:"}, truncate=True)]
        for predictive in predictor.predictives:
            self._engine.call(partial(predictor.predict, warm_up, predictive)).result()
        return predictor

    def _use(self, predictor: Predictor) -> None:
        """Set what depends on the base model, and say how a new one is held."""
        if self._base is predictor.base:
            return
        self._base = predictor.base
        weights = predictor.weights
        logger.info(
            "the base's weights are %s: %s",
            weights.held,
            weights.reason,
            extra={"event": "weights", "held": weights.held, "reason": weights.reason},
        )
        on_cpu = predictor.device.type == "cpu"
        self._engine.token_budget = self._settings.batch_tokens or (CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS)

    def _tell(self, what: dict[str, str], predictor: Predictor) -> None:
        artifact = predictor.artifact
        with self._telling:  # an artifact may be unloaded while another one is loaded: the last word is the newest
            active = self.shelf.active
            self._metrics.set_artifacts(
                [(p.name, p.predictor.artifact.digest, p.predictor is active) for p in self.shelf.places]
            )
        logger.info(
            "artifact is %s", what["event"], extra={**what, "artifact": artifact.name, "digest": artifact.digest}
        )
