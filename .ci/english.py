"""Finds the worst patterns of English in pages, docstrings and comments: python .ci/english.py.

They are words of our own where the field has one, sentences that begin with a noun phrase (Of, What, Where), and, in
pages, sentences of more than 40 words. Fails with a line for each place.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 40
#: A plan that stays as written. The list only shrinks.
EXEMPT = {"benchmarks/evidence/PLAN.md"}
#: Words to avoid, with their replacements.
WORDS = {
    r"strangeness|strangers?": "out-of-distribution score, out-of-distribution input",
    r"developing (?:tasks?|half|halves)": "development task",
    r"step sizes?": "learning rate",
    r"in the mean(?! or )": "on average",
    r"(?:what|nothing|all that) is promised": "guarantee",
    r"vouch(?:es)?(?: for)?": "certify; leak",
    r"hangs? on": "depends on",
    r"rooms|floors?": "packages, layers",
    r"kept out|held apart": "held out",
    r"where another than|so many are wrong|answers that labels corrected": "a plain phrase",
}
STARTS = re.compile(r"(?:Of|What|Where|Whoever|Wherever|Whatever)\b(?!.*\?$)")


def paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the plain text of each paragraph, list item and table cell; code is left out."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", lambda code: "\n" * code[0].count("\n"), page, flags=re.M | re.S)
    first, lines = 1, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if not line.strip() or re.match(r"\s*(?:[-*]|\d+\.|\||#+)\s|\|", line):
            if lines:
                yield first, plain(" ".join(lines))
            first, lines = number, []
        if line.lstrip().startswith("|"):
            yield from ((number, plain(cell)) for cell in line.strip().strip("|").split(" | "))
        elif line.strip() and not line.startswith("#") and (lines or not line.startswith("    ")):
            lines.append(re.sub(r"^\s*(?:[-*]|\d+\.)\s", "", line).strip())


def plain(text: str) -> str:
    """Return text without emphasis and link targets, each span of code as one word."""
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]+`", "`code`", text))
    return re.sub(r"[*\[\]]", "", text).strip()


def of_page(page: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the message of each pattern in a page."""
    for line, text in paragraphs(page):
        yield from ((line, message) for message in coined(text))
        for sentence in sentences(text):
            if (count := len(sentence.split())) > LONGEST:
                yield line, f"{count} words in one sentence, at most {LONGEST}: '{sentence[:50]}'"


def sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph, parted at colons and semicolons too."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`(])|(?<=[;:])\s+", text)


def coined(text: str) -> Iterator[str]:
    """Yield a message for each word of a paragraph that the field has another one for, and for each noun phrase."""
    for pattern, instead in WORDS.items():
        for found in re.finditer(rf"\b(?:{pattern})\b", text, re.I):
            yield f"write '{instead}' for '{found[0]}'"
    for sentence in filter(STARTS.match, sentences(text)):
        yield f"begin with the subject, or with If or When: '{sentence[:50]}'"


def of_code(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the message of each pattern in the docstrings and comments of a module."""
    values = ((node.lineno, node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    texts = [(line, str(value.value)) for line, value in values if isinstance(value, ast.Constant)]
    for block in re.finditer(r"(?:^ *#.*\n)+", source, re.M):
        texts.append((source[: block.start()].count("\n") + 1, re.sub(r"^ *#:? ?", "", block[0], flags=re.M)))
    for line, text in texts:
        for paragraph in re.sub(r"``[^`]+``", "`code`", text).split("\n\n"):
            yield from ((line, message) for message in coined(" ".join(paragraph.split())))


def main() -> int:
    """Print every place; return 1 if there is one."""
    listed = subprocess.run(["git", "ls-files", "*.md", "*.py"], capture_output=True, text=True, check=True, cwd=ROOT)
    count = 0
    for name in listed.stdout.split():
        path = ROOT / name
        if not path.exists() or name in EXEMPT or name.startswith("tests/") or name.endswith("report/results.md"):
            continue
        text = path.read_text(encoding="utf-8")
        for line, message in of_page(text) if path.suffix == ".md" else of_code(text):
            sys.stdout.write(f"{name}:{line}: {message}\n")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
