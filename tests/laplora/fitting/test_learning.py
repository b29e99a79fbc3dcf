"""Labels that come after packaging: the new version, what it forgets, and how it is put back."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import reseal

import laplora
from laplora.answers import comparison
from laplora.answers.comparison import Comparison, compare
from laplora.artifact.folder import read_artifact
from laplora.errors import ConditioningError, ConfigError, DataError, LaploraWarning
from laplora.experts.base import Labelled

Rows = list[dict[str, Any]]
QUIET: Any = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def saved(conditioned: laplora.CalibratedPosterior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conditioned.save(tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def artifact(saved: Path, tmp_path: Path) -> Path:
    """Return a folder of the artifact to change."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def probs_of(folder: Path, rows: Rows) -> torch.Tensor:
    """Return what an artifact answers by ``conditioned``, after its golden answers were replayed."""
    served = laplora.Predictor.load(folder, device="cpu")
    encoded = [served.encode({"text": row["text"]}, truncate=True) for row in rows]
    return torch.tensor([answer.arrays.probs.tolist() for answer in served.predict(encoded, "conditioned")])


def flipped(rows: Rows) -> Rows:
    other = {"negative": "positive", "positive": "negative"}
    return [row | {"label": other[row["label"]]} for row in rows]


def test_the_new_version_answers_as_the_posterior_in_memory(
    conditioned: laplora.CalibratedPosterior, saved: Path, artifact: Path, rows: dict[str, Rows]
) -> None:
    """One way through the artifact, one through memory: the same answers, figures and records."""
    before = probs_of(artifact, rows["calibration"])
    found = laplora.condition(artifact, rows["test"], **QUIET, force=True)
    after = probs_of(artifact, rows["calibration"])
    in_memory = conditioned.condition(rows["test"], force=True)
    expected = [answer.arrays.probs.tolist() for answer in in_memory.predict(rows["calibration"], "conditioned")]
    torch.testing.assert_close(after, torch.tensor(expected), rtol=0, atol=2e-3)
    assert not torch.allclose(after, before, atol=1e-3)
    manifest, packaged = read_artifact(artifact).manifest, read_artifact(saved).manifest
    everyone = len(rows["test"]) + len(rows["calibration"])
    assert found.rows == len(rows["test"])
    assert (manifest.calibration.split, manifest.calibration.rows) == ("labels", everyone)
    assert manifest.experts["conditioned"].rows == everyone
    assert (manifest.pool, manifest.prior) == (packaged.pool, packaged.prior)
    for name, record in manifest.predictives.items():
        moved = name in ("conditioned", "pooled")
        assert (record == packaged.predictives[name]) == (not moved)
        scores = laplora.Predictor.load(artifact, device="cpu").review_scores[name]
        assert len(scores.score) == (everyone if moved else len(rows["calibration"]))
        assert record.nll == pytest.approx(in_memory.fit.calibrated.predictives[name].nll, abs=1e-3)
    assert found.after.predictive == "pooled"
    assert manifest.recommended.chosen_by == "labels"
    assert set(manifest.recommended.table) == {"conditioned", "pooled", "temperature"}
    assert in_memory.recommended == manifest.recommended.predictive
    assert manifest.metrics["pooled"]["nll"] == pytest.approx(found.after.nll)
    # Whoever loaded the packaged version makes the same one, and one more of it.
    restored = laplora.restore_packaged(artifact).path
    learned = laplora.load(restored, **QUIET).condition(rows["test"], force=True)
    folder = learned.save(artifact.parent / "learned")
    torch.testing.assert_close(probs_of(folder, rows["calibration"]), after, rtol=0, atol=1e-5)
    assert learned.predict_proba(rows["calibration"], "conditioned") == pytest.approx(after.numpy(), abs=1e-5)
    assert read_artifact(folder).manifest.recommended == manifest.recommended
    with pytest.raises(ConfigError, match="keeps the report"):
        learned.save(folder, report="<html>")


def test_conditioning_and_forgetting_is_never_having_had_the_row(artifact: Path, rows: dict[str, Rows]) -> None:
    """Conditioning anew without some rows leaves no trace of them, in any file but for the time and the origin."""
    other = Path(shutil.copytree(artifact, artifact.parent / "other"))
    as_packaged, digest = files_of(artifact), read_artifact(artifact).digest
    laplora.condition(artifact, rows["test"], **QUIET, force=True)
    laplora.condition(artifact, rows["test"][:20], **QUIET, force=True)
    laplora.condition(other, rows["test"][:20], **QUIET, force=True)
    forgot, never = files_of(artifact), files_of(other)
    assert {n for n in forgot if forgot[n] != never.get(n)} == {"manifest.json"}
    assert set(forgot) == set(never)
    assert torch.equal(probs_of(artifact, rows["calibration"]), probs_of(other, rows["calibration"]))
    assert forgot != as_packaged
    assert laplora.restore_packaged(artifact).digest == digest
    assert files_of(artifact) == as_packaged
    with pytest.raises(ConfigError, match="nothing to undo"):
        laplora.restore_packaged(artifact)


def test_no_row_is_measured_by_its_own_label(conditioned: laplora.CalibratedPosterior, rows: dict[str, Rows]) -> None:
    """A label decides about the other rows' answers and never about its own, or its twins'."""
    given = [*rows["test"], rows["test"][3] | {"text": rows["test"][3]["text"].upper()}]
    wrong = [dict(row) for row in given]
    wrong[3:4] = flipped(wrong[3:4])
    with pytest.warns(LaploraWarning, match="1 rows repeat another row's prompt with another label"):
        changed = conditioned.condition(wrong, force=True)
    right, first, new = conditioned.condition(given, force=True), len(rows["calibration"]), len(given)
    for name in ("conditioned", "pooled"):
        one, other = (p.fit.experts[name].held_out for p in (right, changed))
        for twin in (3, new - 1):
            torch.testing.assert_close(one[first + twin], other[first + twin], rtol=0, atol=1e-9)
        assert int(((one - other).abs() > 1e-6).any(1).sum()) > new // conditioned.fit.calibrated.calibration.folds
        assert (
            int(((one - other).abs() > 1e-6).any(1)[:first].sum()) > 0
        )  # rows of before are answered by what the others know now
    groups = right.fit.labelled.groups
    assert groups[first + 3] == groups[-1] > groups[:first].max()
    grouped = [{**row, "thread": number // 2} for number, row in enumerate(rows["test"])]
    pairs = conditioned.condition(grouped, groups="thread", force=True).fit.labelled
    assert pairs.groups[first:].unique_consecutive().tolist() == pairs.groups[first::2].tolist()
    assert pairs.folds[first::2].tolist() == pairs.folds[first + 1 :: 2].tolist()
    with pytest.raises(DataError, match="no row has the field 'tread', which groups names"):
        conditioned.condition(grouped, groups="tread")


def test_what_a_configuration_named_stays(classifier: laplora.Classifier, rows: dict[str, Rows]) -> None:
    wanted = laplora.FitSettings.model_validate({"predictives": {"serve": "laplace"}})
    fitted = laplora.fit(classifier, rows["train"], rows["calibration"], settings=wanted, progress=False)
    learned = fitted.condition(rows["test"], force=True)
    assert learned.recommended == "laplace"
    assert learned.predict_proba(rows["train"]) == pytest.approx(fitted.predict_proba(rows["train"]))
    off = laplora.FitSettings.model_validate({"predictives": {"conditioned": False}})
    fitted = laplora.fit(classifier, rows["train"], rows["calibration"], settings=off, progress=False)
    with pytest.raises(ConfigError, match="no head that labels could move"):
        fitted.condition(rows["test"], force=True)
    wanted = laplora.FitSettings.model_validate({"predictives": {"serve": "frozen"}})
    with pytest.raises(ConfigError, match=r"serve: frozen is not there: this fit has .*'pooled'"):
        laplora.fit(classifier, rows["train"], rows["calibration"], settings=wanted, progress=False)


def test_worse_is_more_than_a_standard_error() -> None:
    """The rule, on losses that are known."""
    count, every = 32, torch.ones(32, dtype=torch.bool)
    labels, groups = torch.arange(count) % 2, torch.arange(count)
    new = Labelled(labels, every[:, None].expand(-1, 2), groups, groups % 5, every)
    right = torch.nn.functional.one_hot(labels, 2).double()
    spread = torch.linspace(-0.1, 0.1, count, dtype=torch.float64)[:, None]

    def compared(level: float) -> Comparison:
        sure = (0.6 + level + spread) * right + (0.4 - level - spread) * (1 - right)
        return compare(("map", (0.2 + 0.6 * right).log()), ("conditioned", sure.log()), new, 5)

    worse = compared(0.0)
    losses = -(0.6 + spread[:, 0]).log() + math.log(0.8)
    assert worse.difference == pytest.approx(float(losses.mean()))
    assert worse.standard_error == pytest.approx(float(losses.std()) / math.sqrt(count))
    assert worse.difference > worse.standard_error
    assert worse.worse
    assert not compared(0.2).worse  # within a standard error
    close = worse.model_copy(update={"difference": 0.4 / count, "standard_error": 0.1 / count})
    assert not close.worse  # less than a needless fit of one number costs
    assert close.model_copy(update={"difference": 0.6 / count}).worse


def test_what_is_refused_leaves_the_artifact_as_it_was(
    artifact: Path, rows: dict[str, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that cannot be used, and labels that make it worse, under a stricter rule: unless it is forced."""
    before, place = files_of(artifact), artifact.parent / "forced"
    with pytest.raises(DataError, match="19 labelled rows are fewer than 20"):  # before anything is loaded
        laplora.condition(artifact.parent / "no-such-artifact", rows["test"][:19], progress=False)
    monkeypatch.setattr(comparison, "WORSE", -1e6)
    monkeypatch.setattr(comparison, "COST", -1e6)
    with pytest.raises(ConditioningError, match="Nothing has changed"):
        laplora.condition(artifact, rows["test"], **QUIET)
    laplora.condition(artifact, rows["test"], out=place, **QUIET, force=True)
    assert files_of(artifact) == before
    assert read_artifact(place).name == "forced"
    (artifact / "rows.safetensors").unlink()
    reseal(artifact)
    with pytest.raises(ConfigError, match="keeps no labelled rows"):
        laplora.condition(artifact, rows["test"], **QUIET, force=True)
