"""mkdocs hook: pages beside the code become pages of the site, and links work there as on GitHub.

README.md is the home page. Every link to a file of the repository is checked. A link to a page or picture of the site
becomes the site's own path. One to code or a folder, which the site does not hold, becomes plain text.
`<!-- reference: NAME -->` becomes a table that the code writes.
"""

from __future__ import annotations

import importlib
import logging
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / ".ci")]  # while mkdocs loads this file
TABLES = importlib.import_module("reference").TABLES
#: The site's files outside docs/.
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docker/README.md",
    "artifacts/FORMAT.md",
    "benchmarks/**/*.md",
    "benchmarks/**/*.png",
    "benchmarks/peers/results.json",
)
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)#\s]*)(#[^)\s]*)?\)")
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"<!-- reference: (\w+) -->")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LOG = logging.getLogger("mkdocs.hooks.site_pages")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures from outside docs/, at the paths that they have in the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, site_path(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with its links turned to the site's paths, and blank lines where Python-Markdown needs them."""
    source = Path(page.file.abs_src_path or "").relative_to(ROOT).as_posix()

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            LOG.warning("%s links to %s, which does not exist", source, target)
        if files.get_file_from_path(site_path(path)) is None:
            return text[1:-1]
        return f"{text}({posixpath.relpath(site_path(path), posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    parts = CODE.split(REFERENCE.sub(lambda match: TABLES[match[1]](), markdown))
    return blank_lines(
        "".join(part if part.startswith("```") else LINK.sub(link, COMMENT.sub("", part)) for part in parts)
    )


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Return a page without Markdown, such as the theme's 404.html, made accessible."""
    return accessible(output)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Return a page made accessible."""
    return accessible(output)


def accessible(output: str) -> str:
    """Return HTML with what a screen reader misses in the theme: a name of the search, no empty head of a column."""
    output = output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
    return re.sub(r"<th([^>]*)></th>", r"<td\1></td>", output)


def site_path(path: str) -> str:
    """Return where the site has a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def blank_lines(markdown: str) -> str:
    """Return Markdown with a blank line before each list and around each table, as GitHub reads it."""
    made: list[str] = []
    in_code = False
    for line in markdown.split("\n"):
        before = made[-1] if made else ""
        changes = kind(line) != kind(before) and (kind(line) or kind(before) == "table")
        same_item = kind(line) == "list" and before.startswith(" ")
        if changes and before.strip() and not same_item and not in_code:
            made.append("")
        made.append(line)
        in_code ^= line.startswith("```")
    return "\n".join(made)


def kind(line: str) -> str:
    """Return "table" or "list" for a line of one, else nothing."""
    if line.startswith("|"):
        return "table"
    return "list" if re.match(r"(- |\d+\. )", line) else ""
