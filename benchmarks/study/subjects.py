"""A many-class task as a user would bring it: a JSON Lines file of exam questions and their subject."""

from __future__ import annotations

import json
from pathlib import Path

from training.data.sources import read_benchmark

#: MMLU subjects and the label word of each: one token after the prompt.
SUBJECTS = {
    "high_school_mathematics": "math",
    "high_school_biology": "biology",
    "high_school_chemistry": "chemistry",
    "high_school_psychology": "psychology",
    "high_school_macroeconomics": "economics",
    "high_school_geography": "geography",
}


def write_subjects(path: Path) -> Path:
    """Write the file if it is not there, and return it: ``{"text", "label"}`` per line."""
    if not path.is_file():
        lines = []
        for subject, word in SUBJECTS.items():
            for pool in read_benchmark("mmlu", (subject,), "auto").pools:
                lines += [json.dumps({"text": e.fields["question"], "label": word}) for e in pool.examples]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
