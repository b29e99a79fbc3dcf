"""What a job sums up of its rows, chunk by chunk."""

from __future__ import annotations

import json

import pytest

from laplora.answers.labels import LabelNames
from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.evaluate import MeasureOptions
from service.jobs.records import About, Job, ScoredRow, Sums
from service.jobs.shown import job_out

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


def test_rows_that_an_earlier_server_did_not_count_leave_the_share_unknown() -> None:
    """What is on disk of a job that began before rows were counted has no such field."""
    kept = Sums().plus(chunk(True), labels=LABELS, bins=5).model_dump(exclude={"unfamiliar"})
    sums = Sums.model_validate(kept).plus(chunk(True, False), labels=LABELS, bins=5)
    assert sums.rows == 3
    assert sums.unfamiliar_share is None


@pytest.mark.parametrize("flags", [(True, None), (None, False)])
def test_a_row_that_nobody_flagged_leaves_the_share_unknown(flags: tuple[bool | None, ...]) -> None:
    assert Sums().plus(chunk(*flags), labels=LABELS, bins=5).unfamiliar_share is None


def test_a_result_that_an_earlier_server_wrote_is_shown_without_a_share() -> None:
    artifact = ArtifactRef(name="fake", digest="sha256:fake", base_model="tiny", quantization="none")
    about = About(artifact=artifact, labels=("n", "p"), options=MeasureOptions(), rows=3, tokens=9, created_at=1e9)
    kept = json.dumps({"artifact": artifact.model_dump(), "rows": 3, "methods": {}})
    shown = job_out(Job("a" * 32, "ann", None, about, status="done"), result=kept)
    assert shown.result is not None
    assert (shown.result.rows, shown.result.unfamiliar) == (3, None)
