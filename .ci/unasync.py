"""Writes the blocking client from the asynchronous one, as httpcore's script of this name does.

    python .ci/unasync.py            write laplora/client/blocking.py
    python .ci/unasync.py --check    fail where the file is not what would be written

Differences of tasks and threads stay by hand, in ``tasks`` and ``threads`` beside the two clients.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "laplora" / "client" / "asynchronous.py"
TARGET = SOURCE.with_name("blocking.py")
NOTE = "\n\nGenerated from asynchronous.py by .ci/unasync.py: edit that file, and run the script.\n"
SUBSTITUTIONS = [
    (r'\A"""The asynchronous client\.', f'"""The blocking client.{NOTE}'),
    (r"\bAn asynchronous\b", "A"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync (?=def|for|with)", ""),
    (r"\bawait ", ""),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\baclose\b", "close"),
    (r"\ba(read|iter_bytes)\b", r"\1"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\btasks\b", "threads"),
    (r"\basynccontextmanager\b", "contextmanager"),
]


def blocking() -> str:
    """Return the source of the blocking client, formatted, with its imports sorted and those that it needs."""
    text = SOURCE.read_text(encoding="utf-8")
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    for step in (["check", "--quiet", "--fix-only", "--select", "F401,I"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", str(TARGET), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def main() -> int:
    """Write or check the file; return 1 for one that is stale."""
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(blocking(), encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != blocking():
        sys.stdout.write(f"{TARGET.relative_to(ROOT)} is stale: python .ci/unasync.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
