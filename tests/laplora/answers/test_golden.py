"""Recorded answers against those of a loaded artifact: how far each may move, and what is never a match."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.provenance import ARTIFACT
from laplora.answers.golden import Golden, GoldenAnswer, read_golden, verify_answers
from laplora.answers.prediction import LabelArrays
from laplora.errors import ArtifactCorruptError, GoldenMismatchError

PROBS = [0.25, 0.75]


def answer(variance: list[float] | None, familiarity: float | None = None) -> Any:
    arrays = LabelArrays(np.array(PROBS), np.array(PROBS), None, {})
    variances = None if variance is None else np.array(variance)
    return SimpleNamespace(arrays=arrays, logit_variance=variances, familiarity=familiarity)


def golden(*variances: list[float] | None, probs: list[float] = PROBS, familiarity: float | None = None) -> Golden:
    """Return recorded answers with these variances."""
    fields = {"inputs": {}, "map_probs": PROBS, "probs": probs, "predictives": {}, "logit_mean": [0.0, 0.0]}
    recorded = [GoldenAnswer(**fields, logit_variance=one, familiarity=familiarity) for one in variances]
    return Golden(tolerance=0.1, variance_tolerance=0.5, familiarity_tolerance=0.2, answers=recorded)


def replay(recorded: list[list[float] | None], got: list[list[float] | None]) -> None:
    """Compare answers whose probabilities are the recorded ones."""
    verify_answers([answer(variance) for variance in got], golden(*recorded))


@pytest.mark.parametrize(
    ("recorded", "got", "shown"),
    [
        ([2.0, 2.0], [2.0, 2.0 * math.exp(0.501)], r"expected \[2, 2\], got \[2, 3.301\]"),
        ([2.0, 2.0], [math.nan, 2.0], r"got \[nan, 2\]"),
        ([0.0, 0.0], [0.5, 0.5], r"expected \[0, 0\], got \[0.5, 0.5\]"),
        ([2.0, 2.0], [2.0], r"got \[2\]"),
        ([2.0, 2.0], None, r"got \[\]"),
    ],
)
def test_variances_that_do_not(recorded: list[float], got: list[float] | None, shown: str) -> None:
    message = rf"golden answer 1: logit_variance differs by more than a factor of 1\.65: .*{shown}\. The loaded model"
    with pytest.raises(GoldenMismatchError, match=message):
        replay([[2.0, 2.0], recorded], [[2.0, 2.0], got])


def test_variances_that_all_move_together_may_move_less() -> None:
    """Rounding moves one answer's up and another's down; another prior moves all of them one way."""
    recorded: list[list[float] | None] = [[2.0, 2.0]] * 4
    replay(recorded, [[2.0 * math.exp(step)] * 2 for step in (0.4, -0.4, 0.3, -0.3)])
    replay(recorded, [[2.0 * math.exp(0.24)] * 2] * 4)
    replay([[2.0, 2.0], [0.0, 1e-9], None], [[2.0 * math.exp(0.499), 2.0 * math.exp(-0.499)], [1e-7, 0.0], [2.0, 2.0]])
    with pytest.raises(GoldenMismatchError, match=r"variances of all 4 together are 1\.3 times .* a factor of 1\.28"):
        replay(recorded, [[2.0 * math.exp(0.26)] * 2] * 4)
    with pytest.raises(GoldenMismatchError, match=r"variances of all 4 together are 0\.771 times"):
        replay(recorded, [[2.0 * math.exp(-0.26)] * 2] * 4)


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ([0.5, 0.5], r"by 0\.2500, more than 0\.1: expected \[0\.5, 0\.5\], got"),
        ([], "by nan"),
        ([0.25, math.nan], "by"),
    ],
)
def test_probabilities_that_do_not_match_are_shown(recorded: list[float], shown: str) -> None:
    with pytest.raises(GoldenMismatchError, match=f"golden answer 0: probs differs {shown}"):
        verify_answers([answer(None)], golden(None, probs=recorded))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.update(answers=[]), "answers: .* at least 1 item"),
        # More than a start may replay.
        (lambda g: g.update(answers=65 * g["answers"][:1]), "answers: .* at most 64 items"),
        (lambda g: g["answers"][1].update(logit_variance=[1.0, -1.0]), "answers.1.logit_variance.1: "),
    ],
)
def test_a_file_that_holds_no_recorded_answers(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    recorded = json.loads((ARTIFACT / "golden.json").read_text())
    change(recorded)
    (tmp_path / "golden.json").write_text(json.dumps(recorded))
    with pytest.raises(ArtifactCorruptError, match=f"golden.json .*{message}"):
        read_golden(tmp_path)


@pytest.mark.parametrize("got", [0.71, 0.01, None, math.nan])
def test_familiarity_that_does_not_match(got: float | None) -> None:
    with pytest.raises(GoldenMismatchError, match=r"familiarity is .*, expected 0\.5 within 0\.2"):
        verify_answers([answer(None, got)], golden(None, familiarity=0.5))
    for recorded, same in ((0.5, 0.69), (0.5, 0.31), (None, 0.1), (None, None)):
        verify_answers([answer(None, same)], golden(None, familiarity=recorded))
