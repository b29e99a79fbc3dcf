"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.report.markdown import markdown_table

_HEAD = """# Unfamiliar inputs

Written by `python -m benchmarks.familiarity` from results.json. Each home is a task with a model that plain PEFT and
Trainer made (SmolLM2-135M, LoRA of rank 8, one seed). Everything else is a stranger to it. The layers, the directions,
how layers are combined and the logits' part were chosen on {chosen}, whose figures therefore flatter.
{held} had no part in it, but that their texts are among the strangers of the others.
clinc150_3000 is clinc150 with 20 training rows of each label in place of 12, shown its near strangers alone.

`familiarity` is the library's, fitted to the training rows: distances of hidden states, and how little the logits are
spread. `familiarity, distances alone` was served before the logits had a part. AUROC is the probability that a stranger
is stranger than a row of the home, FPR the share of strangers that pass where 95 % of the home's rows do. The sets in
italics are near: of the home's own kind, with none of its labels.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page."""
    chosen = ", ".join(name for name, result in results.items() if result["chosen_on"])
    held = ", ".join(name for name, result in results.items() if not result["chosen_on"])
    head = _HEAD.format(chosen=chosen or "no home", held=held or "no home")
    return "\n".join([head, _overview(results), *(_home(name, result) for name, result in results.items())])


def _overview(results: Mapping[str, Any]) -> str:
    """Return mean AUROC of every score over each home's sets, and of the near sets alone."""
    scores = list(dict.fromkeys(score for result in results.values() for score in result["detection"]))
    lines = []
    for score in scores:
        cells = [score]
        for result in results.values():
            sets = result["detection"].get(score)
            cells.append("-" if sets is None else _mean(sets, result["near"]))
        lines.append(cells)
    note = "Mean AUROC over the sets of strangers; in brackets that of the near ones, which it does not count.\n\n"
    return f"## All homes\n{note}" + markdown_table(["score", *results], lines)


def _mean(sets: Mapping[str, Mapping[str, float]], near: list[str]) -> str:
    far = [found["auroc"] for title, found in sets.items() if title not in near]
    close = [found["auroc"] for title, found in sets.items() if title in near]
    shown = f"{sum(far) / len(far):.3f}" if far else "-"
    return shown + (f" ({sum(close) / len(close):.3f})" if close else "")


def _home(name: str, result: Mapping[str, Any]) -> str:
    rows = result["rows"]
    lines = []
    detected, shares = result["detection"], _of_150(result["flags"])
    for title in detected["familiarity"]:
        best = max(
            (score for score in detected if not score.startswith("familiarity")),
            key=lambda score: detected[score][title]["auroc"],
        )
        mine, other = detected["familiarity"][title], detected[best][title]
        lines.append(
            [
                f"*{title}*" if title in result["near"] else title,
                str(int(mine["outside"])),
                f"{mine['auroc']:.3f} ({mine['low']:.3f} to {mine['high']:.3f})",
                f"{mine['fpr_at_95_tpr']:.2f}",
                f"{shares['strangers'][title]:.0%}",
                f"{other['auroc']:.3f}, {best}",
            ]
        )
    rates = [
        [
            str(row["calibration"]),
            f"{row['stated']:.1%}",
            f"{row['familiar']:.1%} ({row['low']:.1%} to {row['high']:.1%})",
        ]
        for row in result["flags"]
    ]
    return "\n".join(
        [
            f"## {name}",
            f"{result['labels']} labels, {rows['train']} training rows, {rows['pool']} other rows, accuracy "
            f"{result['accuracy']:.3f}; states after the layers {', '.join(map(str, result['layers']))} of 30. "
            f"Flagged: with {shares['calibration']} calibration rows, in the mean over 200 draws.\n",
            markdown_table(["strangers", "rows", "AUROC (95 %)", "FPR", "flagged", "best other score"], lines),
            "Rows of the home that are flagged, over 200 draws of calibration rows from the other rows: the mean "
            "share, and the quantiles of 5 % and 95 % of the draws.\n",
            markdown_table(["calibration rows", "stated at most", "flagged"], rates),
        ]
    )


def _of_150(rows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((row for row in rows if row["calibration"] == 150), rows[-1])
