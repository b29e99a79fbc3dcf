"""Which artifacts answer: loaded in the background, verified on the device, put on the shelf in one step.

A request keeps the model that it has a lease on, so a change drops nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laplora.errors import ArtifactIncompatibleError, ArtifactNotFoundError, ConfigError, LaploraError
from laplora.remote.address import is_address
from service.artifacts.bounded_load import BoundedLoads
from service.artifacts.candidates import check_base, load_candidate
from service.artifacts.folders import artifact_folders
from service.artifacts.listing import ArtifactListing
from service.artifacts.predictors import Library
from service.artifacts.reports import Reports
from service.artifacts.shelf import Place, Shelf
from service.errors import (
    ActivationRunningError,
    ArtifactChangedError,
    ArtifactNotLoadedError,
    DeviceFaultError,
    NotReadyError,
    kind_of,
)
from service.scoring.backend import Backend
from service.scoring.model import Model, TokenBudget
from service.settings import Settings
from service.telemetry.logs import log_crash, logger
from service.telemetry.metrics import Metrics, Phase
from service.threads import Threads

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

#: An artifact's name, what it is, or why it cannot be served, and its place on the shelf.
Listed = tuple[str, "Artifact | LaploraError", Place | None]
_LOADED, _ACTIVATED, _UNLOADED = {"event": "loaded"}, {"event": "activated"}, {"event": "unloaded"}
#: Seconds in which the disk is to say whether an artifact that is not loaded is there.
LOOK_UP_S = 1.0


@dataclass(frozen=True)
class Change:
    """The effect of loading or activating an artifact, with the names of the former active one and the evicted ones."""

    model: Model
    previous: str | None
    unloaded: tuple[str, ...] = ()


class ArtifactHost:
    """Loads artifacts onto the shelf and takes them off it, one change at a time.

    Args:
        on_failure: called in the loading thread when an artifact to start with cannot be loaded.
        on_change: called after models came into memory or went, in the thread that saw to it.

    Attributes:
        listing, shelf, loads: what the root has, what is loaded, and loads that may hang.
        stage: how far the start has come, in words.
        began_whole: whether the start could serve all that it was given the names of.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        metrics: Metrics,
        library: Library,
        threads: Threads,
        on_failure: Callable[[Exception], None] | None,
        on_change: Callable[[], None],
    ) -> None:
        self.listing = ArtifactListing(library.read)
        self.shelf = Shelf(max_artifacts=settings.max_artifacts, max_bytes=settings.max_artifact_bytes)
        self.loads = BoundedLoads(settings.load_timeout_s, metrics.set_abandoned_load)
        self.stage, self.began_whole = "starting", True
        self._settings, self._backend, self._metrics, self._library = settings, backend, metrics, library
        self._on_failure, self._on_change = on_failure, on_change
        self._reports = Reports()
        #: Folders of the artifacts that the settings name, by their names; they need not lie in the root.
        self._configured: dict[str, Path] = {}
        # One disk that does not answer keeps neither the other kind of work nor anybody else waiting.
        self._name_threads, self._disk_threads = threads.pool("names", 1), threads.pool("disk", 1)
        self._changing, self._telling = threading.Lock(), threading.Lock()

    # Which answer

    @property
    def active(self) -> Model | None:
        """The model that answers where a request names none; None until all to start with have passed."""
        return self.shelf.active if self.stage == "ready" else None

    @property
    def models(self) -> list[Model]:
        """The artifacts that are loaded, the active one first."""
        return [place.model for place in self.shelf.places]

    def require_active(self) -> Model:
        """Return the active model.

        Raises:
            NotReadyError: there is none yet; the message names the stage.
        """
        if (model := self.active) is None:
            raise NotReadyError(f"no artifact answers yet, stage: {self.stage}")
        return model

    def require_taking(self) -> Model:
        """Return the active model, if the server takes requests.

        Raises:
            DeviceFaultError, DrainingError, NotReadyError: it does not.
        """
        self._backend.require_open()
        return self.require_active()

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Model]:
        """Yield the model of a loaded artifact, None for the active one; it stays in memory inside the block.

        Raises:
            DeviceFaultError, DrainingError, NotReadyError, ArtifactNotFoundError, ArtifactNotLoadedError: as
                ``require_taking`` and ``require_loaded``.
        """
        self.require_taking()
        if name is not None:
            await self.require_loaded(name)
        with self.shelf.lease(name) as model:
            yield model

    async def require_loaded(self, name: str) -> None:
        """Return if an artifact is loaded; look for one that is not on the disk, off the event loop.

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

    async def listed(self) -> list[Listed]:
        """Return every artifact: those on the shelf, the active one first, then the others of the root."""
        return await asyncio.get_running_loop().run_in_executor(self._disk_threads, self._list)

    def _list(self) -> list[Listed]:
        places = self.shelf.places
        shown = {place.model.artifact.path.resolve() for place in places}
        named = {place.name for place in places}
        folders = {name: path for name, path in self._folders().items() if name not in named}
        others = self.listing.read({name: path for name, path in folders.items() if path.resolve() not in shown})
        loaded: list[Listed] = [(place.name, place.model.artifact, place) for place in places]
        return [*loaded, *((name, item, None) for name, item in others.items())]

    async def report_of(self, name: str) -> bytes:
        """Return the report, an HTML page, of an artifact that ``listed`` has under a name.

        Raises:
            ArtifactNotFoundError: no artifact has that name.
            ArtifactError: it cannot be read.
            ReportNotFoundError: as ``Reports.read``.
        """
        return await asyncio.get_running_loop().run_in_executor(self._disk_threads, self._report_of, name)

    def _report_of(self, name: str) -> bytes:
        for listed, item, _ in self._list():
            if listed == name:
                if isinstance(item, LaploraError):
                    raise item
                return self._reports.read(item)
        raise ArtifactNotFoundError("no artifact of this name: GET /artifacts lists them")

    def path_of(self, name: str) -> Path:
        """Return the folder of an artifact that can be loaded by name. Looks at the disk: not for the event loop.

        Raises:
            ArtifactNotFoundError: not the name of a folder in the root.
        """
        loaded = self.shelf.find(name)
        if loaded is not None:
            return loaded.artifact.path
        path = self._folders(name).get(name)
        if path is None:
            raise ArtifactNotFoundError("no artifact of this name: GET /artifacts lists them")
        return path

    # Changes

    def change(self, name: str, activate: bool, begun: Callable[[], object]) -> Change:
        """Load and verify an artifact of the root, unless it is loaded with this content. Not for the event loop.

        Args:
            activate: it then answers where a request names none; on another base model it sends away those on the old.
            begun: called once nothing refuses it any more, before it is loaded.

        Raises:
            NotReadyError: the first artifact still loads.
            ArtifactNotFoundError: no such folder in the root.
            ActivationRunningError: another change runs.
            LoadTimeoutError, LoadStuckError: as ``BoundedLoads.run``; ShelfFullError: as ``Shelf.put``.
            ArtifactError, ModelError, DownloadError: it cannot be served, or cannot be beside the active one.
        """
        with self.changing() as active:
            loaded = self.shelf.find(name)
            # If a load is stuck, use the one in memory: reading its files might hang too.
            if self.loads.stuck and activate and loaded is not None and self._activate(loaded):
                return Change(loaded, active.artifact.name)
            path, artifact = self.loads.run(name, lambda go_on: self._read(name))
            loaded = self.shelf.find(artifact.name)
            if loaded is not None and loaded.artifact.digest == artifact.digest:
                if not activate or loaded is active or self._activate(loaded):
                    return Change(loaded, active.artifact.name)
                # Somebody unloaded it since it was found: it is loaded again.
            elif loaded is not None and loaded.artifact.path.resolve() != path.resolve():
                raise ArtifactIncompatibleError(f"another loaded artifact is called {artifact.name!r}: unload it first")
            if not activate:
                check_base(artifact, active)
                self.shelf.check_room()
            begun()
            candidate = self.loads.run(name, partial(load_candidate, self._backend, path))
            if not activate and candidate.base is not active.base:
                raise ArtifactIncompatibleError("the base model on disk is not that in memory: activate the artifact")
            previous = active.artifact.name
            del active, loaded  # so that nothing here keeps another base in memory
            unloaded = self._put(candidate, activate=activate)
            self._on_change()
            return Change(candidate, previous, tuple(unloaded))

    def activate(self, model: Model, begun: Callable[[], object]) -> Change:
        """Let a loaded model, and no other version, answer where a request names none; ``begun`` as of ``change``.

        Raises:
            NotReadyError, ActivationRunningError: as ``changing``.
            ArtifactChangedError: another version is loaded, or none.
        """
        with self.changing() as active:
            if self.shelf.find(model.artifact.name) is not model or not self._activate(model):
                raise ArtifactChangedError("another version of the artifact is loaded by now, or none")
            begun()
            return Change(model, active.artifact.name)

    def budget_of(self, model: Model) -> TokenBudget:
        """Return the token budget of a loaded model."""
        return self._backend.budget_of(model)

    def unload(self, name: str) -> Model:
        """Take an artifact off the shelf; what is under way is still answered. Return its model.

        Raises:
            NotReadyError: the first artifact still loads.
            ArtifactNotLoadedError, ArtifactActiveError: it is not loaded, or the active one.
        """
        self.require_active()
        model = self.shelf.remove(name)
        self._backend.use(self.require_active(), self.models)
        self._tell(_UNLOADED, model)
        self._on_change()
        return model

    @contextmanager
    def changing(self) -> Iterator[Model]:
        """Hold while an artifact changes, one at a time, and yield the active one.

        Raises:
            NotReadyError: the first artifact still loads.
            ActivationRunningError: another change runs.
        """
        self.require_active()
        if not self._changing.acquire(blocking=False):
            raise ActivationRunningError("another artifact is being loaded or conditioned: try again later")
        try:
            yield self.require_active()  # again, under the lock: a change may have ended since
        finally:
            self._changing.release()

    def load_in_place(self, name: str, folder: Path) -> Model:
        """Return the verified model of a new version of a loaded artifact; not on the shelf yet.

        Errors are those of ``change``.
        """
        return self.loads.run(name, partial(load_candidate, self._backend, folder))

    def replace(self, former: Model, model: Model) -> None:
        """Put a new version in the place of a loaded artifact; requests under way keep the former one.

        Raises:
            ArtifactNotLoadedError, ShelfFullError: as ``Shelf.put``.
        """
        self._put(model, activate=False, former=former)
        self._on_change()

    def read(self, path: Path) -> Artifact:
        """Return the artifact in a folder, every file verified. Looks at the disk: not for the event loop."""
        return self._library.read(path)

    def _read(self, name: str) -> tuple[Path, Artifact]:
        path = self.path_of(name)
        return path, self._library.read(path)

    def _activate(self, loaded: Model) -> bool:
        """Make a loaded artifact the active one; return whether it is still loaded."""
        if not self.shelf.activate(loaded.artifact.name):
            return False
        self._tell(_ACTIVATED, loaded)
        return True

    def _put(self, model: Model, *, activate: bool, former: Model | None = None) -> list[str]:
        unloaded = self.shelf.put(model, activate=activate, former=former)
        self._backend.use(model, self.models)
        self._tell(_ACTIVATED if activate else _LOADED, model)
        return unloaded

    # The start

    def start(self, names: Sequence[str] = ()) -> None:
        """Load artifacts in a background thread.

        Args:
            names: of folders, the active one first; those that cannot be served are left out. Without the first one,
                and where none is named, those that the settings name are loaded.
        """
        threading.Thread(target=self._load_first, args=(names,), name="laplora-load", daemon=True).start()

    def _load_first(self, names: Sequence[str]) -> None:
        try:
            with self._changing:
                configured = (self._settings.artifact, *self._settings.also_load)
                if not self._put_named(names, configured):
                    for number, name in enumerate(configured):
                        self._put_first(self._configured_folder(name), number == 0)
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

    def _configured_folder(self, name: str) -> Path:
        """Return the folder of an artifact that the settings name, which can be loaded by its name from now on."""
        settings = self._settings
        if is_address(name):
            path = self._library.fetch(name, settings, lambda stage: self._enter("loading", stage))
        elif name == settings.artifact:
            path = settings.artifact_path
        else:
            path = artifact_folders(settings.artifacts_root, name).get(name) or self.path_of(name)
        self._configured[path.name] = path
        return path

    def _folders(self, name: str | None = None) -> dict[str, Path]:
        """Return what can be loaded by name: what the settings name, and the artifacts of the root."""
        configured = {key: path for key, path in self._configured.items() if name in (None, key)}
        return artifact_folders(self._settings.artifacts_root, name) | configured

    def _put_named(self, names: Sequence[str], configured: Sequence[str]) -> bool:
        """Load artifacts by name, and return whether the first one is loaded; ``began_whole`` says whether all are."""
        for name in configured if names else ():
            with suppress(LaploraError):  # perhaps none of those that are named
                self._configured_folder(name)
        for number, name in enumerate(names):
            try:
                self._put_first(self.path_of(name), number == 0)
            except DeviceFaultError:
                raise
            except Exception as error:
                self.began_whole = False
                fields = {"event": "follow_failed", "artifact": name, "code": kind_of(error).code}
                logger.error("an artifact that was served cannot be any more: %s", type(error).__name__, extra=fields)
                if number == 0:
                    return False
        return bool(names)

    def _put_first(self, path: Path, activate: bool) -> None:
        active = self.shelf.active
        if not activate and active is not None:
            artifact = self._library.read(path)
            if (there := self.shelf.find(artifact.name)) is not None:
                if there.artifact.path.resolve() == path.resolve():
                    return
                raise ConfigError(
                    f"two of the artifacts to start with are called {artifact.name!r}, by which requests choose: leave "
                    "one out of also_load, or package it under another name"
                )
            check_base(artifact, active)
        if unloaded := self._put(self._backend.load(path, self._enter), activate=activate):
            raise ConfigError(f"the artifacts to start with do not fit beside each other: {unloaded} had to go")

    def _enter(self, phase: Phase, stage: str) -> None:
        """Say how far the start has come."""
        if stage != self.stage:
            logger.info("start: %s", stage, extra={"event": "stage", "phase": phase, "stage": stage})
        self.stage = stage
        self._metrics.set_phase(phase)

    def _tell(self, what: dict[str, str], model: Model) -> None:
        artifact = model.artifact
        with self._telling:  # an artifact may be unloaded while another one is loaded: the last word is the newest
            active = self.shelf.active
            self._metrics.set_artifacts(
                [(p.name, p.model.artifact.digest, p.model is active) for p in self.shelf.places]
            )
        extra = {**what, "artifact": artifact.name, "digest": artifact.digest}
        logger.info("artifact is %s", what["event"], extra=extra)
