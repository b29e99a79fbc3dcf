"""The reported tasks read what their authors publish: every row with its label, and no row by a neighbour's label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence.plan import REPORTED
from benchmarks.evidence.tasks import TASKS
from laplora.prompts.templates import render

QUESTION = {
    "stem": "why?",
    "choices": [{"text": text, "label": label} for text, label in zip("wxyz", "1234", strict=True)],
}
FILES: dict[str, dict[str, bytes]] = {
    "snips": {
        **{f"snips/{part}.seq.in": b"play  it\nbook two  seats\n" for part in ("train", "valid", "test")},
        **{f"snips/{part}.label": b"PlayMusic\nBookRestaurant\n" for part in ("train", "valid", "test")},
    },
    "ag_news": {"ag_news/test.csv": b'"3","Fears, again","says ""he""\\now"\n"1","A","b"\n'},
    "subj": {"subj/objective.txt": b"it begins . \n", "subj/subjective.txt": b"caf\xe9 .\n"},
    "customer_reviews": {"customer_reviews/negative.txt": b"bad .\n", "customer_reviews/positive.txt": b"good .\n\n"},
    "hate": {"tweet_eval/hate/test_text.txt": b"@user a\n\nb c\n", "tweet_eval/hate/test_labels.txt": b"1\n0\n0\n"},
    "arc_challenge": {
        f"arc/ARC-Challenge/ARC-Challenge-{part}.jsonl": json.dumps({"question": QUESTION, "answerKey": "3"}).encode()
        for part in ("Train", "Dev", "Test")
    },
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("snips", [("play it", 1), ("book two seats", 0)] * 3),
        ("ag_news", [('Fears, again. says "he" now', 2), ("A. b", 0)]),
        ("subj", [("it begins .", 0), ("caf\u00e9 .", 1)]),
        ("customer_reviews", [("bad .", 0), ("good .", 1)]),
        ("hate", [("a", 1), ("b c", 0)]),
        ("arc_challenge", [("why?", 2)] * 3),
    ],
)
def test_a_row_has_its_own_label(name: str, expected: list[tuple[str, int]], tmp_path: Path) -> None:
    for file, content in FILES[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    rows: list[tuple[Any, int]] = list(TASKS[name].read(tmp_path))
    assert [(fields.get("text", fields.get("question")), label) for fields, label in rows] == expected
    for fields, _ in rows:
        assert render(TASKS[name].template, fields, TASKS[name].labels)[0].endswith((":", "is"))


def test_the_reported_tasks_are_those_of_the_plan() -> None:
    plan = (Path(__file__).parents[3] / "benchmarks" / "evidence" / "PLAN.md").read_text(encoding="utf-8")
    classes = {name: f"| {name} | {len(TASKS[name].labels)} " for name in REPORTED}
    assert [name for name, row in classes.items() if row not in plan] == []
