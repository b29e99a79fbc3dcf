"""The machine, time and code of a figure: kept beside it, and shown on its page."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from laplora.artifact.folder import read_artifact

ROOT = Path(__file__).parents[2]
#: The artifact that whatever needs one is measured on.
ARTIFACT = ROOT / "artifacts" / "fields-smollm2"
#: The folder of quick runs' figures: git ignores it, and nothing published is made of it.
SCRATCH = ROOT / "runs" / "bench-quick"
#: The files that a figure can depend on; the pages and figures themselves are not among it, a run changes them.
_CODE = ("*.py", "artifacts", "constraints.txt")


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def commit(root: Path = ROOT) -> str:
    """Return the checkout's commit, with a note where its code was changed since; ``unknown`` outside of one."""
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *_CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with changes" if changed else head


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def artifact(folder: Path = ARTIFACT) -> str:
    """Return an artifact's name and the start of its digest."""
    content = read_artifact(folder)
    return f"{content.name} {content.digest[:19]}"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)", info.read_text(encoding="utf-8") if info.is_file() else "", re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def hardware() -> str:
    return f"{processor()}, {os.cpu_count()} cores"


def versions(packages: Sequence[str]) -> str:
    """Return ``name version`` of each package that is installed, with commas between them."""
    installed = []
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(installed)
