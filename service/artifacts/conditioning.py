"""New versions of loaded artifacts that learn from labels, written in their folders and put on the shelf in one step.

The new version is whole and verified before it takes the former one's place, on the disk and on the shelf. An earlier
error leaves both as they are.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.answers.labels import LabelNames
from laplora.errors import (
    ArtifactWriteError,
    ConfigError,
    DataError,
    FactorizationError,
    InvalidInputError,
    NonFiniteError,
)
from service.artifacts.host import ArtifactHost
from service.errors import (
    ArtifactChangedError,
    ArtifactNotLoadedError,
    ArtifactNotWritableError,
    ConditioningImpossibleError,
    DeviceMemoryError,
)
from service.scoring.backend import Backend
from service.scoring.device_faults import is_out_of_memory
from service.scoring.model import Model
from service.telemetry.logs import logger

if TYPE_CHECKING:
    from laplora.answers.comparison import Comparison
    from laplora.artifact.label_changes import LabelChanges
    from laplora.fitting.loaded import Version
    from laplora.prompts.examples import Example

#: The error numbers of a folder that the server may only read.
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class LabelledRow:
    """One input, the template's fields by name, with its true label, its probabilities, or labels where several may be
    right.
    """

    fields: dict[str, Any]
    label: str | list[str] | dict[str, float]
    id: str | None = None


@dataclass(frozen=True)
class Wanted:
    """The version that a request asks for.

    Attributes:
        rows: that the new version is to know.
        digest: that the artifact must have; None: any.
        force: whether to take a version that answers worse.
        changes: of the labels, after which the rows' are; None: none.
    """

    rows: Sequence[LabelledRow]
    digest: str | None = None
    force: bool = False
    changes: LabelChanges | None = None


@dataclass(frozen=True)
class Conditioned:
    """The new version, the digest of the former one, and the figures; None of the packaged version."""

    model: Model
    previous: str
    comparison: Comparison | None = None


class Conditioner:
    """Conditions loaded artifacts, one change of an artifact at a time."""

    def __init__(self, host: ArtifactHost, backend: Backend) -> None:
        self._host, self._backend = host, backend

    def condition(self, name: str, wanted: Wanted, begun: Callable[[], object]) -> Conditioned:
        """Let a loaded artifact learn from labels. Not for the event loop.

        Args:
            begun: called once artifact and rows have been looked at, before the first pass over the rows.

        Raises:
            NotReadyError, ActivationRunningError, LoadTimeoutError, LoadStuckError: as ``ArtifactHost.change``.
            ArtifactNotLoadedError: it is not loaded, or was unloaded before its new version was whole; nothing changed.
            ArtifactChangedError: it is not the one asked for, or on the disk there is another one by now.
            ArtifactNotWritableError: the folder that it lies in cannot be written to.
            InvalidInputError: a row that does not fit the template or the labels.
            ConditioningError: the labels make the answers worse.
            ConditioningImpossibleError: too few or too many rows, changes or rows that the artifact cannot have.
            DeviceMemoryError: a row that is too long for the device's memory.
            ArtifactError, ModelError: the new version does not load.
            ShelfFullError: the new version, which is a little larger, does not fit beside those in use. If they came
                into use after the last check, it is on the disk and the former one in memory.
        """
        from laplora.artifact.label_changes import Relabelling
        from laplora.fitting.learning import check_count
        from laplora.fitting.loaded import Given, write_version

        with self._host.changing():
            own = (loaded := self._loaded(name, wanted.digest)).artifact.manifest

            def work(go_on: Callable[[], None]) -> Version:
                return self._backend.make_version(loaded, Given(rows, to, wanted.force), go_on=go_on)

            try:
                of = wanted.changes
                to = None if of is None else Relabelling.of(of, own.labels, own.calibration.ordered)
                rows = examples_of(loaded, wanted.rows, "rows", to.after if to else None)
                if to is None:
                    check_count(len(rows))
                begun()
                version = self._host.loads.run(name, work)
            except (ConfigError, DataError, FactorizationError, NonFiniteError) as error:
                raise ConditioningImpossibleError(str(error)) from None
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise DeviceMemoryError("the labelled rows do not fit the device's memory: send shorter ones") from None
            new = self._swap(loaded, partial(write_version, version, loaded.artifact.path))
            comparison: Comparison = version.learned.comparison
            self._say({"event": "conditioned"}, loaded, new, rows=len(rows), difference=round(comparison.difference, 4))
            return Conditioned(new, loaded.artifact.digest, comparison)

    def undo(self, name: str, digest: str | None, begun: Callable[[], object]) -> Conditioned:
        """Put a loaded artifact back as it was packaged; ``begun`` and errors as of ``condition``."""
        from laplora.artifact.packaged import check_conditioned, packaged_manifest, restore_packaged

        with self._host.changing():
            loaded = self._loaded(name, digest)
            # A version that was made beside its artifact has the artifact's name, and would replace it.
            if (packaged := packaged_manifest(loaded.artifact).name) != loaded.artifact.name:
                raise ConditioningImpossibleError(
                    f"the packaged version is called {packaged!r}: put it back offline, by 'python -m training "
                    "condition --undo', and load that folder"
                )
            try:
                check_conditioned(loaded.artifact)
                begun()
                new = self._swap(loaded, partial(restore_packaged, loaded.artifact.path))
            except ConfigError as error:
                raise ConditioningImpossibleError(str(error)) from None
            self._say({"event": "conditioning_undone"}, loaded, new)
            return Conditioned(new, loaded.artifact.digest)

    def _loaded(self, name: str, digest: str | None) -> Model:
        """Return a loaded artifact that lies on the disk as it is loaded, where it can be replaced."""
        from laplora.artifact.folder import PULL_FIRST, is_fetched

        loaded = self._host.shelf.find(name)
        if loaded is None:
            raise ArtifactNotLoadedError("the artifact is not loaded: load it before it is conditioned")
        artifact = loaded.artifact
        if digest is not None and digest != artifact.digest:
            raise ArtifactChangedError(
                f"the artifact is {artifact.digest} by now: look at GET /artifacts before you try again", field="digest"
            )
        if self._host.loads.run(name, lambda go_on: self._host.read(artifact.path)).digest != artifact.digest:
            raise ArtifactChangedError("another version than the loaded one lies on the disk: load it first")
        if is_fetched(artifact.path):
            raise ArtifactNotWritableError(f"the artifact is the cache's copy of what lies elsewhere: {PULL_FIRST}")
        if artifact.path.is_symlink():
            raise ArtifactNotWritableError("the artifact's folder is a link: serve the folder that it leads to")
        if not os.access(artifact.path.parent, os.W_OK):
            raise _not_writable()
        return loaded

    def _swap(self, loaded: Model, write: Callable[[Callable[[Path], object]], object]) -> Model:
        """Write a version, load it while it is nobody's, put it in the former one's place on the shelf, and return it.

        Args:
            write: takes what checks the whole folder before it takes the artifact's place.
        """
        made: list[Model] = []

        def check(folder: Path) -> None:
            made.append(self._host.load_in_place(loaded.artifact.name, folder))
            self._host.shelf.check_fits(made[0], loaded)

        try:
            write(check)
        except ArtifactWriteError as error:
            raise ArtifactNotWritableError(str(error)) from None
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            raise _not_writable() from None
        (new,) = made
        new.artifact = replace(new.artifact, path=loaded.artifact.path)
        # Unloaded since the check, it stays so: that came after the change, which is on the disk and succeeded.
        with suppress(ArtifactNotLoadedError):
            self._host.replace(loaded, new)
        return new

    @staticmethod
    def _say(event: dict[str, str], former: Model, new: Model, **figures: float) -> None:
        served = {"artifact": new.artifact.name, "digest": new.artifact.digest, "previous": former.artifact.digest}
        logger.info("artifact %s", event["event"], extra={**event, **served, **figures})


def examples_of(model: Model, rows: Sequence[LabelledRow], field: str, labels: Any = None) -> list[Example]:
    """Return a request's rows as examples of the artifact; ``labels``: None: its own.

    Raises:
        InvalidInputError: a row that does not fit the template or the labels; the field is that of the request.
    """
    from laplora.prompts.examples import Example
    from laplora.prompts.templates import render

    manifest = model.artifact.manifest
    template, own = manifest.template.template(), LabelNames.of(manifest)
    names = replace(own, names=labels or own.names)
    examples = []
    for number, row in enumerate(rows):
        try:
            _, classes = render(template, row.fields, names.names)
            truth = names.truth(row.label, row.fields)
        except InvalidInputError as error:
            raise InvalidInputError(f"{field} {number}: {error}", field=f"{field}.{number}.{error.field}") from None
        fields = {name: tuple(v) if isinstance(v, list) else v for name, v in row.fields.items()}
        identity = row.id or str(number)
        if isinstance(truth, int):
            examples.append(Example(identity, fields, truth, classes))
        elif names.several:
            examples.append(Example(identity, fields, -1, classes, tuple(map(int, truth))))
        else:
            examples.append(Example(identity, fields, truth.index(max(truth)), classes, target=truth))
    return examples


def _not_writable() -> ArtifactNotWritableError:
    return ArtifactNotWritableError(
        "the folder that the artifact lies in cannot be written to: let the server write to it, or condition the "
        "artifact offline by laplora.condition"
    )
