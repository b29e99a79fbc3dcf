"""The plan of a request: what is counted, is counted before it is made."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from serving import FakePredictor

from service.errors import BatchTooLargeError
from service.http.calls import Call
from service.http.routes.planning import inputs_of
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictOptions


def test_no_input_of_too_many_is_made() -> None:
    made = []

    def inputs(fields: Sequence[str]) -> list[Input]:
        made.extend(Input() for _ in range(5))
        return made

    call = Call(inputs, 5, None, PredictOptions())
    with pytest.raises(BatchTooLargeError) as refused:
        inputs_of(call, FakePredictor().artifact, 4)
    assert (refused.value.limit, refused.value.got, made) == (4, 5, [])
    assert len(inputs_of(call, FakePredictor().artifact, 5)) == 5
