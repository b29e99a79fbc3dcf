"""``laplora.load``: an artifact in memory, with the calls of what ``laplora.fit`` returned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from laplora.answers.golden import what_leaves
from laplora.answers.golden_inputs import GoldenInputs
from laplora.artifact.describing import summary
from laplora.artifact.folder import check_name, check_replaceable
from laplora.artifact.packaged import copy_artifact, is_conditioned
from laplora.errors import ConfigError
from laplora.fitting.calibrated import ONE_AT_A_TIME, CalibratedPosterior
from laplora.fitting.fit import Fit
from laplora.fitting.learning import LoadedClassifier
from laplora.fitting.rows import read_rows
from laplora.fitting.versions import Version, as_packaged, make_version, predictor_of, write_version
from laplora.predictor import Predictor
from laplora.progress import Progress, shown_by


def load(path: str | Path, *, device: str = "auto", progress: bool | Progress = True) -> CalibratedPosterior:
    """Return an artifact as ``laplora.fit`` returned it: the same calls, but for ``fit``, which no artifact has.

    Args:
        path: its folder, or an address, as of ``Predictor.load``; so are errors.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; progress: whether to show it, or what shows it.
    """
    shown = shown_by(progress)
    return LoadedPosterior(Predictor.load(path, device=device, progress=shown.say), shown)


class LoadedPosterior(CalibratedPosterior):
    """A posterior from an artifact, and from labels that came after it was loaded."""

    def __init__(self, loaded: Predictor, progress: Progress, version: Version | None = None) -> None:
        """Take what was loaded; ``version``: what later labels made of it."""
        self._loaded, self._version, self._progress = loaded, version, progress
        self._measured = None
        self.classifier = LoadedClassifier(loaded)
        self._serve(loaded if version is None else predictor_of(as_packaged(loaded), version.found, version.manifest))
        self.data = dict(self.predictor.artifact.manifest.data)

    def __repr__(self) -> str:
        """Return what was loaded, in a line."""
        later = f", {self._version.found.comparison.rows} later labels" if self._version else ""
        return f"CalibratedPosterior(of {self.predictor.artifact.name!r}{later}, answers by {self.recommended})"

    @property
    def fit(self) -> Fit:  # type: ignore[override]
        """Raise AttributeError: an artifact holds no calibration rows."""
        raise AttributeError("a loaded posterior has no fit: an artifact holds what was fitted, and not its rows")

    def condition(
        self,
        rows: Any,
        label_field: str = "label",
        *,
        groups: str | None = None,
        force: bool = False,
    ) -> CalibratedPosterior:
        """Return the posterior that learned from further labels, as of ``CalibratedPosterior.condition``.

        It begins at the artifact as it was packaged; ``save`` writes the version that ``laplora.condition`` does.
        """
        self._check_model()
        examples = read_rows(rows, self.classifier, label_field, groups=groups)
        with ONE_AT_A_TIME:
            version = make_version(self._loaded, examples, force=force, progress=self._progress)
        self._progress.say(str(version.found.comparison))
        return LoadedPosterior(self._loaded, self._progress, version)

    def save(
        self,
        path: str | Path,
        *,
        base: str | None = None,
        revision: str | None = None,
        verify: bool = True,
        report: str | None = None,
        golden_inputs: GoldenInputs = None,
    ) -> Path:
        """Write the artifact, with what ``condition`` and ``evaluate`` made new, as of ``CalibratedPosterior.save``.

        Base model and golden inputs are those of the artifact. ``verify`` loads what later labels changed, and replays
        its answers.
        """
        if (base, revision, golden_inputs) != (None, None, None):
            raise ConfigError(
                "a loaded posterior keeps base model and golden inputs of its artifact: leave out base, revision and "
                "golden_inputs"
            )
        manifest = self.predictor.artifact.manifest
        if report is not None and (self._version is not None or is_conditioned(manifest)):
            raise ConfigError("what later labels conditioned keeps the report that it was packaged with: leave it out")
        self._check_model()
        target, device = Path(path), self.classifier.place
        check_name(target)
        check_replaceable(target)
        metrics = summary(self._measured.to_json()) if self._measured else manifest.metrics
        manifest = manifest.model_copy(update={"name": target.name, "metrics": metrics})

        def check(folder: Path) -> None:
            if verify:
                Predictor.load(folder, device=device, progress=self._progress.say)

        if self._version is None:
            copy_artifact(self._loaded.artifact, target, manifest, report)
        else:
            with ONE_AT_A_TIME:
                write_version(replace(self._version, manifest=manifest), target, check)
        self._progress.say(f"artifact: {target}: {what_leaves(target)}")
        return target
