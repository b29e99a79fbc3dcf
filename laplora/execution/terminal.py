"""Text that cannot steer the terminal that shows it."""

from __future__ import annotations

import json
import re

#: Control characters but for tab and line end, and those that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(line: str) -> str:
    """Return a line whose characters that steer a terminal, as a file's texts may have them, are escaped as in JSON."""
    return _STEERING.sub(lambda one: json.dumps(one[0])[1:-1], line)
