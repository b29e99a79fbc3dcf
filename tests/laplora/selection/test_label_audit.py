"""Which labels an audit lists, against cleanlab's confident learning, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from cleanlab.filter import find_label_issues

from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.selection.label_audit import audit_labels


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (3, 1), (6, 2)])
def test_it_lists_what_confident_learning_does_the_least_probable_first(classes: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    probs = (1.5 * torch.randn(300, classes, generator=draw, dtype=torch.float64)).softmax(1)
    labels = torch.multinomial(probs, 1, generator=draw)[:, 0]
    wrong = torch.randperm(300, generator=draw)[:40]
    labels[wrong] = (labels[wrong] + 1) % classes
    expected = find_label_issues(
        labels.numpy(), probs.numpy(), filter_by="confident_learning", return_indices_ranked_by="self_confidence"
    )
    found = audit_labels(probs, labels, [f"text {'x' * i}" for i in range(300)])
    assert 20 < len(found.unlikely) < 150
    assert found.unlikely == tuple(expected.tolist())
    rows = torch.arange(300)
    others = probs.index_put((rows, labels), torch.tensor(0.0, dtype=torch.float64))
    assert torch.equal(found.likelier, others.argmax(1))
    assert torch.equal(found.other, others.amax(1))


def test_rows_that_two_labels_fit_and_near_copies_with_two_labels_are_named_once() -> None:
    given = [[0.9, 0.05, 0.05], [0.5, 0.45, 0.05], [0.5, 0.4, 0.1], [0.05, 0.05, 0.9], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]
    probs, labels = torch.tensor(given, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2])
    texts = ["Where is order 12?", "a b", "c d", "where is order 345", "e f", "g h"]
    found = audit_labels(probs, labels, texts)
    assert (found.unlikely, found.ambiguous, found.copies) == ((3,), (1, 2), ((0, 3),))
    examples = [Example(f"row {i}", {"text": text}, int(labels[i]), 3) for i, text in enumerate(texts)]
    rows = found.to_rows(examples, ("x", "y", "z"))
    assert [(row["id"], row["found"]) for row in rows] == [
        ("row 3", "unlikely, copies 1"),
        ("row 0", "copies 1"),
        ("row 1", "ambiguous"),
        ("row 2", "ambiguous"),
    ]
    assert rows[0] | {"found": ""} == {
        "id": "row 3",
        "found": "",
        "label": "y",
        "likelier": "z",
        "probability": {"label": pytest.approx(0.05), "likelier": pytest.approx(0.9)},
        "text": "where is order 345",
    }


def test_soft_labels_and_missing_texts_are_refused() -> None:
    probs = torch.full((2, 2), 0.5, dtype=torch.float64)
    with pytest.raises(DataError, match="one certain label each"):
        audit_labels(probs, probs, ["a", "b"])
    with pytest.raises(DataError, match="one entry for each of 2 rows, got 1"):
        audit_labels(probs, torch.tensor([0, 1]), ["a"])
