"""Predictions on their way out: each as the contract has it, and a body that is written in pieces.

An answer can have millions of numbers. They are arrays until a thread writes them, some kilobytes at a time, so that
neither the event loop nor memory ever holds them as Python's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from laplora.answers.written import Shown, written_answer
from service.errors import UnscorableInputError
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictResponse

if TYPE_CHECKING:
    from laplora.answers.prediction import Array, Prediction

#: Numbers of an answer that is written at once, on the event loop: one or two milliseconds. A thread costs as much.
_FEW = 2000
#: Numbers that a row counts as beside those by label, and characters of labels that count as one.
_OF_A_ROW, _CHARACTERS = 30, 16
#: Bytes of a piece of a body, and numbers of a covariance that are written at once.
_PIECE_BYTES, _PIECE_NUMBERS = 1 << 16, 1 << 12


@dataclass(frozen=True)
class Answered:
    """The answer to a request for predictions.

    Attributes:
        head: all of it but the predictions; inputs, predictions, ids: of each input, no ids where none are kept.
        shown: which fields of a prediction are sent.
        said: of each input, what the other model said that the artifact corrects; None without one.
    """

    head: PredictResponse
    inputs: Sequence[Input]
    predictions: Sequence[Prediction]
    ids: Sequence[str]
    shown: Shown
    said: Sequence[Mapping[str, float] | None]

    @property
    def numbers(self) -> int:
        """How many it has, about."""
        labels = (6 * len(p.labels) + sum(map(len, p.labels)) // _CHARACTERS for p in self.predictions)
        return sum(_OF_A_ROW + of + _size(p.logit_covariance) for of, p in zip(labels, self.predictions, strict=True))

    def rows(self) -> Iterator[tuple[Prediction, str | None]]:
        """Yield each prediction, and the id that POST /feedback knows it by, None where none is kept."""
        none: Sequence[str | None] = [None] * len(self.predictions)
        return zip(self.predictions, self.ids or none, strict=True)

    def response(self) -> Response:
        """Return what POST /predict answers, which is sent as it is written where it is large."""
        if self.numbers <= _FEW:
            return Response(b"".join(self._body()), media_type="application/json")
        return StreamingResponse(_pieces(self._body()), media_type="application/json")

    def _body(self) -> Iterator[bytes]:
        """Yield the parts of the answer, each prediction's covariance last in it."""
        shown, head = self.shown, self.head.model_dump_json(exclude={"predictions"}, exclude_unset=True)
        yield f'{head[:-1]},"predictions":['.encode()
        for i, (item, (prediction, its_id)) in enumerate(zip(self.inputs, self.rows(), strict=True)):
            if i:
                yield b","
            fields, variance = item.template_fields, shown.has_variance
            written = written_answer(prediction, fields, id=item.id, variance=variance, checked=True)
            if its_id is not None:
                written["prediction_id"] = its_id
            row = to_json(shown.select(written))  # as PredictionOut has it
            if shown.has_covariance:
                yield row[:-1] + b',"logit_covariance":'
                yield from _matrix(prediction.logit_covariance)
                yield b"}"
            else:
                yield row
        yield b"]}"


def check_finite(predictions: Sequence[Prediction]) -> None:
    """Raise UnscorableInputError for the first prediction with a number that is not finite: JSON has none."""
    for index, prediction in enumerate(predictions):
        if not prediction.finite:
            raise UnscorableInputError(
                f"the model has no finite answer for input {index}: change or leave out that input",
                field=f"inputs.{index}",
            )


def _size(values: Array | None) -> int:
    return 0 if values is None else values.size


def _matrix(values: Array | None) -> Iterator[bytes]:
    if values is None:
        yield b"null"
        return
    rows = max(1, _PIECE_NUMBERS // len(values))
    for i in range(0, len(values), rows):
        yield (b"," if i else b"[") + to_json(values[i : i + rows].tolist())[1:-1]
    yield b"]"


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about one size; Starlette makes each on a thread."""
    piece = bytearray()
    for part in parts:
        piece += part
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)
