"""Text that cannot steer a terminal, and the command that it finds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

#: Control characters but for tab and line end, and those that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(line: str) -> str:
    """Return a line whose characters that steer a terminal, as a file's texts may have them, are escaped as in JSON."""
    return _STEERING.sub(lambda one: json.dumps(one[0])[1:-1], line)


def program() -> str:
    """Return what a user types to run ``laplora``: its name if it is on the path, else where it is."""
    script = Path(sys.executable).parent / "laplora"
    if shutil.which("laplora") or not script.exists():
        return "laplora"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))
