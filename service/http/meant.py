"""Hints about a body that does not fit its schema, without any of its values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any, Final, get_args

from pydantic import BaseModel

from service.errors import shown_field

#: Names of other interfaces, and of earlier ones, by ours; LIST is the body's list.
_OTHERS: Final = {
    "mode": "options.predictive",
    "model": "artifact",
    "artifact_name": "artifact",
    "parameters": "options",
    "risk": "options.target_risk",
    "return_covariance": "options.covariance",
    "return_variance": "options.variance",
    **dict.fromkeys(("input", "inputs", "items", "rows", "messages", "texts", "instances", "data", "examples"), "LIST"),
    **dict.fromkeys(("sequences", "queries", "pool"), "LIST"),
}


def meant(body: Any, model: type[BaseModel]) -> str | None:
    """Return what a refused body's sender probably meant, one sentence a problem; None where nothing is likely.

    Args:
        model: of the endpoint's requests.
    """
    listed = next((name for name in ("inputs", "items", "rows") if name in model.model_fields), None)
    if listed is None:
        return None
    if not isinstance(body, dict):
        return f'a body is an object: send {{"{listed}": [...]}}'
    options = _options(model)
    hints = [*_of_list(body.get(listed), listed), *_of_names(body, model.model_fields, options, listed)]
    if isinstance(chosen := body.get("options"), dict):
        hints += _of_names(chosen, options, model.model_fields, listed, inside=True)
        risk = chosen.get("target_risk")
        if isinstance(risk, int | float) and 1 <= risk < 100:
            hints.append("target_risk is a share: 5 % is 0.05")
    return "; ".join(dict.fromkeys(hints)) or None


def _options(model: type[BaseModel]) -> Collection[str]:
    field = model.model_fields.get("options")
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((one.model_fields for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), {})


def _of_list(value: Any, listed: str) -> Iterator[str]:
    example = f'"{listed}": [{{"text": ...}}]'
    if isinstance(value, dict):
        yield f"{listed} is a list: send {{{example}}}"
    elif isinstance(value, str) or (isinstance(value, list) and any(isinstance(one, str | list) for one in value)):
        yield f"each of {listed} is an object of the template's fields: send {{{example}}}"


def _of_names(
    given: dict[str, Any], known: Collection[str], elsewhere: Collection[str], listed: str, *, inside: bool = False
) -> Iterator[str]:
    """Yield what the unknown names of an object probably are.

    Args:
        known: its names; elsewhere: those of the other object, of the body or of its options.
        inside: whether it is the options.
    """
    for name in (one for one in given if one not in known):
        shown = shown_field(name)
        other = _OTHERS.get(name, "").replace("LIST", listed)
        close = get_close_matches(name, [*known, *elsewhere], 1, 0.75)
        if name in elsewhere:
            there = f'{{"{shown}": ...}}' if inside else f'{{"options": {{"{shown}": ...}}}}'
            yield f"{shown} stands {'beside' if inside else 'in'} options: send {there}"
        elif other.removeprefix("options.") in {*known, *elsewhere}:
            yield f"for {shown} send {other}"
        elif close:
            yield f"for {shown} send {'options.' if (close[0] in known) == inside else ''}{close[0]}"
        elif not inside and isinstance(given[name], str | list) and listed not in given:
            yield f'{shown} is a field of an input: send {{"{listed}": [{{"{shown}": ...}}]}}'
