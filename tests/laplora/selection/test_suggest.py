"""What to label next, by real artifacts of tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_artifacts import load, pack_several
from tiny_runs import FinishedRun, choice_rows, sentiment_rows

from laplora.answers.prediction import Prediction
from laplora.errors import ConfigError, DataError
from laplora.linearised import contrast_hessian, contrasts
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.selection.information import information
from laplora.selection.suggest import most_telling, suggest


@pytest.fixture(scope="module")
def rows(sentiment_predictor: Predictor) -> list[EncodedRow]:
    """Twenty rows, and two of them again."""
    found = [sentiment_predictor.encode({"text": row["text"]}, truncate=True) for row in sentiment_rows()[:20]]
    return [*found, found[3], found[7]]


def answers(predictor: Predictor, rows: list[EncodedRow]) -> list[Prediction]:
    return [predictor.predict([row], also=("laplace",), covariance=True)[0] for row in rows]


def by_definition(one: Prediction) -> float:
    """Return ``1/2 log det (I + Lambda V)`` in the contrasts."""
    probs, covariance = (torch.tensor(v) for v in (one.arrays.probs, one.logit_covariance))
    if one.labels_present is not None:
        hessian = torch.diag(probs * (1 - probs))
    else:
        transform = contrasts(len(probs))
        covariance = transform.T @ covariance @ transform
        hessian = contrast_hessian(probs.log()[None], torch.ones(1, len(probs), dtype=torch.bool))[0]
    return float(torch.logdet(torch.eye(len(hessian), dtype=torch.float64) + hessian @ covariance)) / 2


def test_rows_come_by_what_their_label_tells(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    """Each prompt once, the largest gain first; any first part is what a smaller count gives."""
    found = suggest(sentiment_predictor, rows, 50)
    assert (found.repeated, found.unfamiliar) == (2, 0)
    assert sorted(one.row for one in found.rows) == list(range(20))
    expected = [by_definition(one) for one in answers(sentiment_predictor, rows[:20])]
    gains = [one.gain for one in found.rows]
    assert gains == sorted(gains, reverse=True)
    assert gains == pytest.approx([expected[one.row] for one in found.rows], rel=1e-3)
    assert min(gains) > 0
    assert [one.row for one in suggest(sentiment_predictor, rows, 4).rows] == [one.row for one in found.rows[:4]]


@pytest.mark.parametrize("several", [False, True])
def test_rows_of_several_classes(choices_run: FinishedRun, tmp_path: Path, several: bool) -> None:
    """Of two and of three choices, of a structure by block; and of labels of which several may be right."""
    if several:
        predictor = load(pack_several(tmp_path))
        fields: list[Any] = [{"text": f"{letter} b {letter}"} for letter in "abcdefgh"]
    else:
        predictor = Predictor.load(choices_run.artifact, device="cpu")
        fields = [{name: row[name] for name in ("question", "choices")} for row in choice_rows()[:6]]
    some = [predictor.encode(one, truncate=True) for one in fields]
    found = answers(predictor, some)
    assert information(found).tolist() == pytest.approx([by_definition(one) for one in found], rel=1e-6)
    assert len(suggest(predictor, some, 3).rows) == 3


def test_a_certain_row_tells_nothing(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    (one,) = answers(sentiment_predictor, rows[:1])
    assert float(information([replace(one, arrays=replace(one.arrays, probs=np.array([1.0, 0.0])))])) == 0


def test_rows_unlike_the_training_rows_are_left_out(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    found = [replace(one, familiarity=i / 22) for i, one in enumerate(answers(sentiment_predictor, rows))]
    gains = information(found).tolist()
    chosen = most_telling(rows, found, gains, 50, 10 / 22)
    assert sorted(one.row for one in chosen.rows) == list(range(10, 20))
    assert (chosen.repeated, chosen.unfamiliar) == (2, 10)
    without = [replace(one, familiarity=None) for one in found]
    assert most_telling(rows, without, gains, 50, 0.5).unfamiliar == 0
    with pytest.raises(DataError, match="like enough"):
        suggest(sentiment_predictor, rows, 5, least_familiarity=2.0)


def test_what_cannot_be(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        suggest(sentiment_predictor, rows, 0)
    with pytest.raises(DataError, match="no rows"):
        suggest(sentiment_predictor, [], 5)


def test_the_pass_is_shown(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    shown: list[tuple[str, int]] = []

    def track(items, title: str) -> Iterator:  # type: ignore[no-untyped-def, type-arg]
        shown.append((title, len(items)))
        yield from items

    suggest(sentiment_predictor, rows, 2, batch_size=4, track=track)
    assert shown == [("answering", 6)]
