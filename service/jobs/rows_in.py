"""One row of an upload: read as POST /evaluate would read it, but that it may have columns of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from laplora.errors import InvalidInputError
from service.errors import InvalidJsonError, InvalidRequestError
from service.http.json_parsing import parse_json
from service.http.schemas.inputs import LabelledInput
from service.scoring.labels import LabelNames, Truth


class RowIn(NamedTuple):
    """A row of an upload.

    Attributes:
        fields: what the prompt is made of; columns: everything that was sent.
        truth: where its true labels are.
    """

    id: str | None
    fields: Mapping[str, Any]
    columns: Mapping[str, Any]
    truth: Truth


def read_row(line: bytes, labels: LabelNames, template_fields: Sequence[str] | None) -> RowIn:
    """Return a row from its JSON object.

    Args:
        template_fields: of the artifact's template. What else a row has are columns of its own. None: nothing may be.

    Raises:
        InvalidJsonError, InvalidRequestError, InvalidInputError: as of a body; fields and messages are of the row.
    """
    if not line.strip():
        raise InvalidJsonError("it is empty: each line is one JSON object")
    try:
        value = parse_json(line)
        item = LabelledInput.model_validate(value)
    except InvalidJsonError as error:
        raise InvalidJsonError(str(error).replace("the body", "it", 1)) from None
    except ValidationError as error:
        # The first problem only, by place and kind, as of a body: never what was sent.
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{field[:200] or 'the object'}: {first['msg']}", field=field or None) from None
    fields = _prompt_fields(item.template_fields, template_fields)
    return RowIn(item.id, fields, value, labels.truth(item.label, fields))


def _prompt_fields(sent: dict[str, Any], template_fields: Sequence[str] | None) -> dict[str, Any]:
    if template_fields is None:
        return sent
    named = [name for name in template_fields if name in sent]
    if "prompt" not in sent or "prompt" in template_fields:
        return {name: sent[name] for name in named}
    if named:
        raise InvalidInputError(f"it has a prompt and {named}: send one or the other", field="prompt")
    return {"prompt": sent["prompt"]}
