"""docs/reliability.md: the tests that hold the promises exist."""

from __future__ import annotations

import re

import pytest
from documents import ROOT, read

NAMES = re.findall(r"`([\w/]*test_\w+\.py)?(::test_\w+)?`", read("docs/reliability.md"))


def named_tests() -> list[tuple[str, str]]:
    """Return (file, test) for each one that the page names; a test without a file is of the file before it."""
    found, file = [], ""
    for path, test in NAMES:
        file = path or file
        if path or test:
            found.append((file, test.removeprefix("::")))
    return found


def test_the_page_names_tests() -> None:
    assert len(named_tests()) > 150


@pytest.mark.parametrize("file", sorted({file for file, _ in named_tests()}))
def test_the_named_tests_exist(file: str) -> None:
    paths = [ROOT / file] if file.startswith("tests/") else list((ROOT / "tests" / "service").rglob(file))
    assert len(paths) == 1, file
    text = paths[0].read_text(encoding="utf-8")
    tests = {test for name, test in named_tests() if name == file and test}
    assert {test for test in tests if not re.search(rf"def {test}\b", text)} == set()
