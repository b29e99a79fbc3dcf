"""Base of the requests of other servers' protocols: strict about what they know, and silent about the rest, as those
servers are. What would change the answer and cannot be done is refused by name.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Foreign(BaseModel):
    """Base of these requests. A subclass lists in ``unsupported`` what it refuses, and what to do instead."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)

    unsupported: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, value: Any) -> Any:
        for name, instead in cls.unsupported.items() if isinstance(value, dict) else ():
            if value.get(name) is not None:
                raise PydanticCustomError("unsupported", f"{name} is not supported: {instead}")
        return value
