"""What to label next, by real artifacts of tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from head_artifacts import load, pack_several
from tiny_runs import FinishedRun, choice_rows, sentiment_rows

from laplora.errors import ConfigError, DataError
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.selection import pool
from laplora.selection.methods import METHODS, Method
from laplora.selection.pool import loss_roots
from laplora.selection.suggest import suggest


@pytest.fixture(scope="module")
def rows(sentiment_predictor: Predictor) -> list[EncodedRow]:
    """Twenty rows, and two of them again."""
    found = [sentiment_predictor.encode({"text": row["text"]}, truncate=True) for row in sentiment_rows()[:20]]
    return [*found, found[3], found[7]]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_chooses_each_prompt_once(
    sentiment_predictor: Predictor, rows: list[EncodedRow], method: Method
) -> None:
    found = suggest(sentiment_predictor, rows, 50, method)
    assert (found.method, found.repeated, found.unfamiliar) == (method, 2, 0)
    assert sorted(one.row for one in found.rows) == list(range(20))
    first = suggest(sentiment_predictor, rows, 4, method)
    assert [one.row for one in first.rows] == [one.row for one in found.rows[:4]]
    assert all((one.gain is None) == (method == "random") for one in found.rows)


def test_information_begins_where_a_label_tells_most(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    """The first gain is ``1/2 log(1 + R V R)`` of the row where it is largest; the gains fall."""
    found = suggest(sentiment_predictor, rows, 20)
    variances = [sentiment_predictor.predict([row], "laplace")[0].logit_covariance for row in rows[:20]]
    # Of two classes the contrast is (f_0 - f_1) / sqrt 2, and the centred logits have covariance q q^T times its own.
    own = torch.tensor([sum(v[i][i] for i in range(2)) for v in variances if v is not None], dtype=torch.float64)
    probs = [sentiment_predictor.predict([row])[0].probs for row in rows[:20]]
    root = loss_roots(probs, 2, several=False)[:, 0, 0]
    alone = (1 + root * own * root).log() / 2
    assert found.rows[0].row == int(alone.argmax())
    assert found.rows[0].gain == pytest.approx(float(alone.max()), rel=1e-3)
    gains = torch.tensor([one.gain for one in found.rows])
    assert bool((gains.diff() <= 1e-6).all())


def test_entropy_sorts_by_the_entropy_of_the_answer(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    found = suggest(sentiment_predictor, rows, 6, "entropy")
    assert [one.gain for one in found.rows] == [one.prediction.total for one in found.rows]
    highest = sorted((sentiment_predictor.predict([row])[0].total for row in rows[:20]), reverse=True)[:6]
    assert [one.gain for one in found.rows] == pytest.approx(highest)


def test_rows_unlike_the_training_rows_are_left_out(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    familiarity = [i / 22 for i in range(22)]
    found = suggest(sentiment_predictor, rows, 50, familiarity=familiarity, least_familiarity=10 / 22)
    assert sorted(one.row for one in found.rows) == list(range(10, 20))
    assert (found.repeated, found.unfamiliar) == (2, 10)
    with pytest.raises(DataError, match="like enough"):
        suggest(sentiment_predictor, rows, 5, familiarity=familiarity, least_familiarity=2.0)
    with pytest.raises(DataError, match="numbers of familiarity"):
        suggest(sentiment_predictor, rows, 5, familiarity=[1.0])


def test_a_posterior_without_a_covariance_between_rows(choices_run: FinishedRun) -> None:
    """``information`` is refused by name; the rows of two and of three choices can be chosen otherwise."""
    predictor = Predictor.load(choices_run.artifact, device="cpu")
    fields = [{name: row[name] for name in ("question", "choices")} for row in choice_rows()[:6]]
    some = [predictor.encode(one, truncate=True) for one in fields]
    with pytest.raises(ConfigError, match="choosing rows by information takes the covariance between rows"):
        suggest(predictor, some, 6)
    assert len(suggest(predictor, some, 6, "entropy").rows) == 6


def test_roots_of_rows_of_several_numbers_of_choices() -> None:
    """A row of two choices has one contrast that a label sees; its square is ``p (1 - p)`` twice."""
    roots = loss_roots([[0.3, 0.7], [0.2, 0.5, 0.3], [1.0, 0.0]], 3, several=False)
    squares = roots @ roots
    assert torch.allclose(squares[0], torch.tensor([[2 * 0.21, 0.0], [0.0, 0.0]], dtype=torch.float64), atol=1e-12)
    assert float(squares[1].trace()) == pytest.approx(1 - 0.04 - 0.25 - 0.09)
    assert float(squares[2].abs().max()) < 1e-12


def test_several_labels_may_be_right(tmp_path: Path) -> None:
    """Each label is a direction of its own."""
    predictor = load(pack_several(tmp_path))
    some = [predictor.encode({"text": f"{letter} b {letter}"}, truncate=True) for letter in "abcdefgh"]
    found = suggest(predictor, some, 8)
    assert sorted(one.row for one in found.rows) == list(range(8))
    assert all(one.gain is not None and one.gain > 0 for one in found.rows)
    assert all(one.prediction.labels_present is not None for one in found.rows)


def test_what_cannot_be(
    sentiment_predictor: Predictor, rows: list[EncodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="choose one of"):
        suggest(sentiment_predictor, rows, 5, "luck")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        suggest(sentiment_predictor, rows, 0)
    with pytest.raises(DataError, match="no rows"):
        suggest(sentiment_predictor, [], 5)
    monkeypatch.setattr(pool, "MEMORY_BYTES", 1000)
    with pytest.raises(ConfigError, match="choose by entropy"):
        suggest(sentiment_predictor, rows, 5)


def test_the_passes_are_shown(sentiment_predictor: Predictor, rows: list[EncodedRow]) -> None:
    shown: list[tuple[str, int]] = []

    def track(items, title: str) -> Iterator:  # type: ignore[no-untyped-def, type-arg]
        shown.append((title, len(items)))
        yield from items

    suggest(sentiment_predictor, rows, 2, batch_size=4, track=track)
    assert shown == [("answering", 6), ("Jacobians", 5)]
