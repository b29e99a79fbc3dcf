"""Counts the project's size, by package, beside its limits: python .ci/count.py.

Counted are lines of Python and words of Markdown in what git tracks. Fails where a limit is passed: whoever adds beyond
it also removes, or raises the limit here and says why.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT, BENCHMARKS = ("laplora", "service", "training"), ("benchmarks",)
#: The most lines of what users install, of benchmarks and of tests, and words of pages. Benchmarks have a limit
#: of their own since the study has 30 rivals: nothing that a user installs grew for them. 80 lines of it measure a
#: server without a model's cost, 200 run everything that needs a GPU by one command, and 260 measure decisions by
#: costs. A user reads the pages, so they have 51,600 words; RESULTS.md, which commands write, is not counted. The audit
#: of labels took 420 lines of the product and 190 of the tests, decisions by costs 720 and 320, which no other command
#: did, changes of labels 460, 290 and 140 of the benchmarks, and a candidate in the
#: shadow 1,110, 500 and 100. All have little to spare: they are to become fewer.
LIMITS = {"product": 62_222, "benchmarks": 8_351, "tests": 45_903, "pages": 52_488}


def tracked(suffix: str) -> list[Path]:
    """Return what git tracks with this suffix, as paths in the repository; what is deleted but not committed is not."""
    listed = subprocess.run(["git", "ls-files", f"*{suffix}"], capture_output=True, text=True, check=True, cwd=ROOT)
    return [path for path in map(Path, listed.stdout.splitlines()) if (ROOT / path).exists()]


def lines(paths: Iterable[Path]) -> int:
    """Return the number of lines of files."""
    return sum((ROOT / path).read_bytes().count(b"\n") for path in paths)


def words(paths: Iterable[Path]) -> int:
    """Return the number of words of files, what white space parts."""
    return sum(len((ROOT / path).read_text(encoding="utf-8").split()) for path in paths)


def by_package(paths: Iterable[Path], package: str) -> dict[str, list[Path]]:
    """Return the files of a package by the folders in it; files in none are under its own name."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        if path.parts[0] == package:
            found.setdefault("/".join(path.parts[:2]) if len(path.parts) > 2 else package, []).append(path)
    return found


def main() -> int:
    """Print the count; return 1 for a limit that is passed."""
    code, pages = tracked(".py"), [path for path in tracked(".md") if path.name != "RESULTS.md"]
    for package in (*PRODUCT, *BENCHMARKS, "tests"):
        files = by_package(code, package)
        sys.stdout.write(
            f"{package}: {sum(map(lines, files.values())):,} lines, {sum(map(len, files.values()))} files\n"
        )
        for name, paths in sorted(files.items(), key=lambda item: -lines(item[1])):
            sys.stdout.write(f"  {lines(paths):6,}  {len(paths):4}  {name}\n")
    counts = {
        name: lines(path for path in code if path.parts[0] in parts)
        for name, parts in (("product", PRODUCT), ("benchmarks", BENCHMARKS), ("tests", ("tests",)))
    } | {"pages": words(pages)}
    for name, count in counts.items():
        sys.stdout.write(f"{name}: {count:,} of at most {LIMITS[name]:,} {'words' if name == 'pages' else 'lines'}\n")
    return int(any(count > LIMITS[name] for name, count in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
