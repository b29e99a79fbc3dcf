"""Programs that some tests start: where they are, and the mark that skips a test and names what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

#: Under which names each is looked for, where these are several.
NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome")}
#: Beside the path: Debian's programs of root, and what .ci/install_helm.py puts beside this Python.
PLACES = (os.environ.get("PATH", ""), "/usr/sbin", str(Path(sys.executable).parent))


def program(name: str) -> str | None:
    """Return where a program is, None where it is not installed."""
    path = os.pathsep.join(PLACES)
    return next(filter(None, (shutil.which(one, path=path) for one in NAMES.get(name, (name,)))), None)


def missing(*names: str) -> str:
    """Return why what needs these programs is skipped, naming those that are missing; empty where none is."""
    absent = [name for name in names if program(name) is None]
    return f"{', '.join(absent)} not installed: .ci/install_programs" if absent else ""


def needs(*names: str) -> pytest.MarkDecorator:
    """Return the mark of a test that starts these programs."""
    return pytest.mark.skipif(bool(missing(*names)), reason=missing(*names))
