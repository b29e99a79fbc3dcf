"""The project's pages as tests read them: their text, their fenced blocks, the rows of their tables."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and where it is."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(name: str) -> str:
    """Return a page's text, by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    """Return the fenced blocks of all pages in these languages, of any for none."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page.relative_to(ROOT).as_posix(), line, match[1], match[2]))
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command of a block, comments left out; a quotation may go over several lines."""
    found, text = [], ""
    for line in block.text.replace("\\\n", " ").splitlines():
        text += line + "\n"
        if text.count("'") % 2 == 0:
            found.append(shlex.split(text, comments=True))
            text = ""
    return [words for words in found if words]


def row(page: str, first: str, *, after: str = "") -> list[str]:
    """Return the cells of the first row that begins with this cell, in the part of a page after some text."""
    part = read(page).partition(after)[2] if after else read(page)
    (cells, *_) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", part, re.MULTILINE)
    return [cell.strip() for cell in cells.split(" | ")]


def words(page: str) -> str:
    """Return a page's text with single spaces, without emphasis: sentences as they are read."""
    return " ".join(read(page).replace("*", "").split())
