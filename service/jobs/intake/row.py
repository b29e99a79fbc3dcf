"""One row of an upload: what of it the prompt is made of, and where its true labels are, if it has any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from laplora.answers.labels import LabelNames, Truth
from laplora.errors import InvalidInputError
from service.jobs.store.records import ReadRow


class Row(NamedTuple):
    """A row of an upload.

    Attributes:
        fields: what the prompt is made of; columns: everything that was sent.
        truth: where its true labels are; None of a row without one.
    """

    id: str | None
    fields: Mapping[str, Any]
    columns: Mapping[str, Any]
    truth: Truth | None


def read_row(read_uploaded: ReadRow, line: bytes, labels: LabelNames, template_fields: Sequence[str]) -> Row:
    """Return a row from its JSON object.

    Args:
        template_fields: of the artifact's template. Other fields of a row are columns of its own.

    Raises:
        InvalidJsonError, InvalidRequestError, InvalidInputError: as of a body; fields and messages are of the row.
    """
    row = read_uploaded(line)
    fields = _prompt_fields(row.inputs, template_fields)
    truth = None if row.label is None else labels.truth(row.label, fields)
    return Row(row.id, fields, row.columns, truth)


def _prompt_fields(sent: Mapping[str, Any], template_fields: Sequence[str]) -> dict[str, Any]:
    named = [name for name in template_fields if name in sent]
    if "prompt" not in sent or "prompt" in template_fields:
        return {name: sent[name] for name in named}
    if named:
        raise InvalidInputError(f"it has a prompt and {named}: send one or the other", field="prompt")
    return {"prompt": sent["prompt"]}
