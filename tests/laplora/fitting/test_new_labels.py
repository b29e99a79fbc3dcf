"""Labels that come after packaging: the new version, what it forgets, and how it is put back."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import laplora
from laplora.artifact.folder import read_artifact
from laplora.errors import ConditioningError, ConfigError, DataError, LaploraWarning
from laplora.fitting import new_labels
from laplora.fitting.new_labels import Comparison, compare
from laplora.linearised import PosteriorPredictive
from laplora.predictive.kinds import CONDITIONED

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
    conditioned: laplora.CalibratedPosterior, artifact: Path, rows: dict[str, Rows]
) -> None:
    """One way through the artifact, one through memory: the same answers, figures and records."""
    before = probs_of(artifact, rows["calibration"])
    found = laplora.condition(artifact, rows["test"], **QUIET, force=True)
    after = probs_of(artifact, rows["calibration"])
    in_memory = conditioned.condition(rows["test"], force=True)
    expected = [answer.arrays.probs.tolist() for answer in in_memory.predict(rows["calibration"], "conditioned")]
    torch.testing.assert_close(after, torch.tensor(expected), rtol=0, atol=2e-3)
    assert not torch.allclose(after, before, atol=1e-3)
    manifest = read_artifact(artifact).manifest
    assert manifest.calibration.rows == found.rows == len(rows["test"])
    assert set(manifest.conditioned) == set(CONDITIONED)
    assert {one.rows for one in manifest.conditioned.values()} == {len(rows["test"]) + len(rows["calibration"])}
    name = found.after.predictive
    assert name == "conditioned"
    assert (manifest.recommended.predictive, manifest.recommended.chosen_by) == (name, "labels")
    assert in_memory.recommended == name
    assert manifest.metrics[name]["nll"] == pytest.approx(found.after.nll)
    assert manifest.predictives[name].nll == pytest.approx(found.after.nll)
    assert in_memory.fit.calibrated.predictives[name].nll == pytest.approx(found.after.nll, abs=1e-3)
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
    """Conditioning anew without some rows leaves no trace of them, in any file but for the time and the origin.

    And it is undone to the byte; a version as packaged has nothing to undo.
    """
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


def test_calibration_rows_given_again_condition_together_with_the_new_ones(
    conditioned: laplora.CalibratedPosterior, rows: dict[str, Rows]
) -> None:
    """Then the answers are those of one conditioning on all rows, as a fit does it; order deals the folds alone."""
    together = conditioned.condition(rows["test"], calibration=rows["calibration"], force=True)
    swapped = conditioned.condition(rows["calibration"], calibration=rows["test"], force=True)
    inputs = rows["train"][:6]
    one = torch.tensor([a.arrays.probs.tolist() for a in together.predict(inputs, "conditioned")])
    other = torch.tensor([a.arrays.probs.tolist() for a in swapped.predict(inputs, "conditioned")])
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert together.fit.calibrated.calibration.rows == len(rows["test"])
    alone = torch.tensor(
        [
            a.arrays.probs.tolist()
            for a in conditioned.condition(rows["test"], force=True).predict(inputs, "conditioned")
        ]
    )
    assert not torch.allclose(one, alone, atol=1e-4)


def test_no_row_is_measured_by_its_own_label(conditioned: laplora.CalibratedPosterior, rows: dict[str, Rows]) -> None:
    """A label decides about the other rows' answers and never about its own."""
    wrong = [dict(row) for row in rows["test"]]
    wrong[3:4] = flipped(wrong[3:4])
    right, changed = (conditioned.condition(r, force=True) for r in (rows["test"], wrong))
    # The score of an answer does not hang on its own label, so that of the row with the other label is the same.
    one, other = (p.fit.scores["conditioned"].score for p in (right, changed))
    folds = conditioned.fit.calibrated.calibration.folds
    assert float(one[3]) == pytest.approx(float(other[3]), abs=1e-9)
    assert int((one != other).sum()) > len(rows["test"]) // folds


def test_an_input_may_come_again(conditioned: laplora.CalibratedPosterior, rows: dict[str, Rows]) -> None:
    """Equal prompts are one group, with calibration rows too, and so are prompts that are cut to the same 64 tokens."""
    long = [{"text": "word " * 100 + end, "label": "positive"} for end in ("good", "bad")]
    given = [*rows["test"], flipped(rows["test"])[0], *long]
    with pytest.warns(LaploraWarning, match="1 rows repeat another row's prompt with another label"):
        alone = conditioned.condition(given, force=True)
    count = len(rows["test"])
    assert alone.fit.calibration.groups is not None
    assert alone.fit.calibration.groups.tolist() == [*range(count), 0, count, count]
    together = conditioned.condition(given[:count], calibration=[given[0], *rows["calibration"]], force=True)
    assert together.fit.calibrated.calibration.rows == count
    grouped = [{**row, "thread": number // 2} for number, row in enumerate(rows["test"])]
    pairs = conditioned.condition(grouped, groups="thread", force=True).fit.calibration.groups
    assert pairs is not None
    assert pairs.tolist() == [number // 2 for number in range(count)]
    with pytest.raises(DataError, match="no row has the field 'tread', which groups names"):
        conditioned.condition(grouped, groups="tread")


def test_worse_is_more_than_a_standard_error(conditioned: laplora.CalibratedPosterior) -> None:
    """The rule, on losses that are known."""
    split = conditioned.fit.calibration
    rows, right = len(split), torch.nn.functional.one_hot(split.labels, 2).double()
    spread = torch.linspace(-0.1, 0.1, rows, dtype=torch.float64)[:, None]

    def compared(level: float) -> Comparison:
        sure = (0.6 + level + spread) * right + (0.4 - level - spread) * (1 - right)
        of = [PosteriorPredictive(p, p, p[:, 0]) for p in (0.2 + 0.6 * right, sure)]
        return compare(conditioned.predictor.artifact.manifest, of[0], "conditioned", of[1], split, 5)

    worse = compared(0.0)
    losses = -(0.6 + spread[:, 0]).log() + math.log(0.8)
    assert worse.difference == pytest.approx(float(losses.mean()))
    assert worse.standard_error == pytest.approx(float(losses.std()) / math.sqrt(rows))
    assert worse.difference > worse.standard_error
    assert worse.worse
    assert not compared(0.2).worse  # within a standard error
    close = worse.model_copy(update={"difference": 0.4 / rows, "standard_error": 0.1 / rows})
    assert not close.worse  # less than a needless fit of one number costs
    assert close.model_copy(update={"difference": 0.6 / rows}).worse


def test_what_is_refused_leaves_the_artifact_as_it_was(
    artifact: Path, rows: dict[str, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that cannot be used, and labels that make it worse, under a stricter rule: unless it is forced."""
    before, place = files_of(artifact), artifact.parent / "forced"
    with pytest.raises(DataError, match="19 labelled rows are fewer than 20"):  # before anything is loaded
        laplora.condition(artifact.parent / "no-such-artifact", rows["test"][:19], progress=False)
    monkeypatch.setattr(new_labels, "WORSE", -1e6)
    monkeypatch.setattr(new_labels, "COST", -1e6)
    with pytest.raises(ConditioningError, match="Nothing has changed"):
        laplora.condition(artifact, rows["test"], **QUIET)
    laplora.condition(artifact, rows["test"], out=place, **QUIET, force=True)
    assert files_of(artifact) == before
    assert read_artifact(place).name == "forced"
