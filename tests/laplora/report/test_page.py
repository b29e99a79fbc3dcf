"""A report's page and slices: everything is there, nothing leaves it, and no text of a row or label is markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import torch
from report_records import report, with_rows

from laplora.report.names import display_name
from laplora.report.page import html
from laplora.report.records import Report, Slicing
from laplora.report.rows import LISTED_ROWS, MOST_CHARACTERS, MOST_LINES
from laplora.report.slices import slices_of
from laplora.report.verdict import judge

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><style>*{}</style>{{ 7 * 7 }}"


class Parsed(HTMLParser):
    """What a browser reads of a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(one: Report) -> str:
    return html(one, judge(one))


def test_a_page_has_every_part() -> None:
    one = replace(
        report(slices=[Slicing("field kind", ["mail", "chat"], torch.arange(120) % 2)]),
        provenance={"base model": "tiny"},
        configuration='{\n  "seed": 0\n}',
        notes=["A further sentence"],
    )
    page = Parsed(page_of(one))
    said = (judge(one).title, judge(one).sentence, "Laplace: the lowest NLL.", "A further sentence", '"seed": 0')
    headings = ("Predictives", "Is it as sure as it is right?", "Labels", "Slices", "Provenance")
    for text in (*said, *headings, "MAP", "temperature scaling", "The dot need not lie on it"):
        assert text in page.text
    # First of all: how much is accepted, and what is wrong among it.
    figures = "accepted at a target error rate of 5.0 %66.7 % wrong among the accepted0.0 %"
    assert figures in " ".join(page.text.partition(judge(one).title)[0].split())
    # Nothing was fine-tuned: the base's own guess is a line of the table, and stands beside no answer.
    heads = replace(one, methods={"map": one.methods["map"], "frozen": one.methods["laplace"]}, served="frozen")
    for alone in (heads, replace(heads, rows=replace(one.rows, map_probs=None))):
        text = Parsed(page_of(alone)).text
        assert "frozen (served)logistic regression on states of the base model" in text
        assert ("MAP: " in text, "MAP’s" in text) == (False, False)
    # Resampling rows pushes an ECE up, so it has no interval.
    assert (
        len(re.findall(r"<td data-label=\"ECE\">\d\.\d{3}<small>chance: to \d\.\d{3}</small></td>", page_of(one))) == 3
    )
    # Two reliability diagrams with their counts, risk-coverage, two histograms.
    assert len(page.tags("svg")) == 2 * 2 + 1 + 2
    assert all(f"<bdi>{text}</bdi>" in page_of(one) for text in ("mail", "chat", "row 119"))
    assert display_name("laplace_evidence_group") == "Laplace (evidence, group)"


def test_a_page_is_read_aloud() -> None:
    """One main heading, no level left out, a caption for each table, words for each chart; the rest is axe's."""
    page = Parsed(page_of(report()))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after - before <= 1 for before, after in pairwise(levels))
    captions = {one["id"] for one in page.tags("p") if one.get("class") == "caption"}
    assert captions == {table["aria-labelledby"] for table in page.tags("table")}
    assert len(captions) == len(page.tags("table")) > 0
    ids = {attributes.get("id") for _, attributes in page.elements}
    named = {chart["aria-labelledby"] for chart in page.tags("svg")}
    assert named <= ids
    assert len(named) == len(page.tags("svg"))


def test_a_page_needs_nothing_else_and_runs_nothing() -> None:
    text = page_of(report())
    page = Parsed(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    for _, attributes in page.elements:
        assert not {"src", "href", "style", "srcset"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import", text)
    policies = [m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'; style-src 'sha256-")
    assert len(text.encode()) < 150_000


def test_markup_in_rows_labels_and_names_stays_text() -> None:
    one = report(
        labels=[EVIL, "positive"],
        texts=[EVIL] * 120,
        references=[EVIL] * 120,
        slices=[Slicing(EVIL, [EVIL, "b"], torch.arange(120) % 2)],
    )
    one = replace(one, title=EVIL, reason=EVIL, notes=[EVIL], provenance={EVIL: EVIL}, configuration=EVIL)
    one = replace(one, measured_on=EVIL)
    page, plain = Parsed(page_of(one)), Parsed(page_of(report()))
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert len(page.tags("style")) == len(plain.tags("style")) == 1
    assert page.text.count("<script>alert(1)</script>") > 2 * LISTED_ROWS
    assert "{{ 7 * 7 }}" in page.text


def test_texts_are_short_lines_without_characters_that_turn_a_page_around() -> None:
    text = "a\u202egnp.exe\u0000b\u2066c\r\nd\u0085e \ud83d" + "\N{MAN}\u200d\N{ROCKET}" + "x" * 10_000
    page = page_of(report(texts=[text] * 120))
    shown = re.findall(r'<td class="text"><bdi>(.*?)</bdi>', page)
    assert shown
    assert all(len(one) <= MOST_CHARACTERS for one in shown)
    assert shown[0].startswith("agnp.exebc d e \N{MAN}\u200d\N{ROCKET}xx")
    assert shown[0].endswith("…")


def test_a_page_without_texts_has_none() -> None:
    by_field = Slicing("field who", ["secret a", "b"], torch.arange(120) % 2, names_are_texts=True)
    by_length = Slicing("length of the prompt", ["short", "long"], torch.arange(120) % 2)
    one = report(texts=[f"secret {i}" for i in range(120)], slices=[by_field, by_length])
    assert "secret 1" in page_of(one)
    assert "secret a" in page_of(one)
    page = page_of(one.without_texts())
    assert "secret" not in page
    assert "field who" not in page
    assert "length of the prompt" in page
    assert "left out" in page
    assert "row 119" in page


def test_the_rows_to_look_at_are_the_surest_mistakes_and_the_least_sure_rows() -> None:
    one = report(texts=None)
    rows = one.rows
    worst, uncertain = (
        re.findall(r"<bdi>(row \d+)</bdi>", part)
        for part in page_of(one).split("The most uncertain rows</p>", 1)
    )  # fmt: skip
    wrong = rows.wrong.nonzero()[:, 0].tolist()
    surest = sorted(wrong, key=lambda i: -float(rows.confidence[i]))[:LISTED_ROWS]
    assert worst == [f"row {i}" for i in surest]
    least = sorted(range(len(rows)), key=lambda i: float(rows.confidence[i]))[:LISTED_ROWS]  # of two classes
    assert uncertain == [f"row {i}" for i in least]


def test_many_labels_no_mistake_and_no_accepted_row_are_pages_too() -> None:
    page = page_of(with_rows(rows=4000, labels=[f"label {i}" for i in range(300)]))
    assert "Confusion matrix" not in page
    assert "The commonest confusions" in page
    assert f"{MOST_LINES} of 300 labels" in page
    assert len(page.encode()) < 250_000
    assert "No row was answered wrong" in page_of(report(wrong=0))
    assert "Nothing is accepted" in page_of(report(reviewed=120))


def test_a_field_of_few_values_is_a_slicing_and_a_text_is_none() -> None:
    kinds = ["mail"] * 30 + ["chat"] * 25 + ["fax"] * 2 + ["telex"]
    inputs = [{"text": f"text {i}", "kind": kind, "same": "x"} for i, kind in enumerate(kinds)]
    (found,) = slices_of(inputs)
    assert found.title == "field kind"
    assert found.names_are_texts
    sizes = {name: int((found.index == place).sum()) for place, name in enumerate(found.names)}
    assert sizes == {"chat": 25, "mail": 30, "all others": 3}
    # A value that few rows have, or that is as long as a sentence, may be about somebody.
    inputs = [{"name": "a" * 61 if i % 2 else "b", "who": f"person {i // 4}"} for i in range(40)]
    assert slices_of(inputs) == []


def test_length_has_quarters_and_unfamiliar_rows_are_apart() -> None:
    tokens = list(range(10, 110))
    length, likeness = slices_of([{"text": str(i)} for i in tokens], tokens, torch.tensor(tokens) > 105)
    assert length.names == ["10 to 34 tokens", "35 to 59 tokens", "60 to 84 tokens", "85 to 109 tokens"]
    assert length.index.bincount().tolist() == [25, 25, 25, 25]
    assert likeness.index.bincount().tolist() == [96, 4]
    assert slices_of([{"text": str(i)} for i in range(9)], [7] * 9, torch.zeros(9, dtype=torch.bool)) == []
