"""What a job sums up of its rows, chunk by chunk."""

from __future__ import annotations

import pytest

from laplora.answers.labels import LabelNames
from service.jobs.store.records import ScoredRow, Sums

LABELS = LabelNames(("n", "p"), several=False)


def chunk(*flags: bool | None) -> list[ScoredRow]:
    return [ScoredRow(row, 0, {"map": ([0.6, 0.4], None)}, flag) for row, flag in enumerate(flags)]


def test_unfamiliar_rows_are_counted_over_chunks() -> None:
    sums = Sums()
    assert sums.unfamiliar_share is None
    for flags in ([False, False], [True], [False, True]):
        sums = Sums.model_validate_json(sums.plus(chunk(*flags), labels=LABELS, bins=5).model_dump_json())
    assert sums.unfamiliar_share == 2 / 5


def test_an_artifact_without_familiarity_has_no_share() -> None:
    sums = Sums().plus(chunk(None, None), labels=LABELS, bins=5)
    assert sums.rows == 2
    assert sums.unfamiliar_share is None


@pytest.mark.parametrize("flags", [(True, None), (None, False)])
def test_a_row_that_nobody_flagged_leaves_the_share_unknown(flags: tuple[bool | None, ...]) -> None:
    assert Sums().plus(chunk(*flags), labels=LABELS, bins=5).unfamiliar_share is None
