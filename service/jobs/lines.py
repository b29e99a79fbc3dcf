"""From the bytes of an upload to its lines, and from a line to a labelled input; bounded, and strict as any body."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from laplora.errors import LaploraError
from service.errors import BodyTooLargeError, InvalidJsonError, InvalidRequestError
from service.http.json_parsing import parse_json
from service.http.schemas.inputs import LabelledInput
from service.scoring.evaluation import label_index


class LineSplitter:
    """Cuts a stream of bytes into lines, without holding more than one that is not whole.

    Args:
        max_line_bytes: of one line.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._lines = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole with this chunk, without their ends.

        Raises:
            BodyTooLargeError: a line longer than ``max_line_bytes``, whole or not.
        """
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._begun, whole[0]])
            self._begun, self._begun_bytes = [], 0
        self._begun.append(rest)
        self._begun_bytes += len(rest)
        sizes = [*map(len, whole), self._begun_bytes]
        if max(sizes) > self._max_line_bytes:
            late = next(i for i, size in enumerate(sizes) if size > self._max_line_bytes)
            number = self._lines + late + 1
            raise BodyTooLargeError(
                f"line {number} has at least {sizes[late]} bytes, max_body_bytes is {self._max_line_bytes} of one line",
                field=f"lines.{number}",
                limit=self._max_line_bytes,
                got=sizes[late],
            )
        self._lines += len(whole)
        return whole

    def end(self) -> list[bytes]:
        """Return the last line, if it has no end of its own."""
        last = b"".join(self._begun)
        self._begun = []
        return [last] if last.strip() else []


def read_line(line: bytes, labels: Sequence[str]) -> tuple[LabelledInput, int]:
    """Return a line's input and the position of its true label.

    Raises:
        InvalidJsonError, InvalidRequestError, InvalidInputError: as of a body; fields and messages are of the line.
    """
    if not line.strip():
        raise InvalidJsonError("it is empty: each line is one JSON object")
    try:
        item = LabelledInput.model_validate(parse_json(line))
    except InvalidJsonError as error:
        raise InvalidJsonError(str(error).replace("the body", "it", 1)) from None
    except ValidationError as error:
        # The first problem only, by place and kind, as of a body: never what was sent.
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{field[:200] or 'the object'}: {first['msg']}", field=field or None) from None
    return item, label_index(item.label, item.template_fields, labels)


def located(error: LaploraError, number: int, field: str | None) -> LaploraError:
    """Return the error, its field and its message now those of a line.

    Args:
        number: of the line, from 1.
        field: of the line's object.
    """
    error.args = (f"line {number}: {error}",)
    error.field = f"lines.{number}.{field}" if field and field != "body" else f"lines.{number}"  # type: ignore[attr-defined]
    return error
