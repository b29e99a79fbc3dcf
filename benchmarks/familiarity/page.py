"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.report.markdown import markdown_table

#: Calibration rows with which the share of strangers that are flagged is shown.
_CALIBRATION = 150
_HEAD = """# Unfamiliar inputs

Written by `python -m benchmarks.familiarity` from results.json. Each home is a task with a model that plain PEFT and
Trainer made (SmolLM2-135M, LoRA of rank 8, one seed). Everything else is a stranger to it. The layers, the directions,
how layers are combined and the logits' part were chosen on {chosen}, whose figures therefore flatter.
{held} had no part in it, but that their texts are among the strangers of the others.
clinc150_3000 is clinc150 with 20 training rows of each label in place of 12, shown its near strangers alone.

`familiarity` is the library's, fitted to the training rows: distances of hidden states, and how little the logits are
spread. `familiarity, distances alone` was served before the logits had a part. AUROC is the probability that a stranger
is stranger than a row of the home. The sets in italics are near: of the home's own kind, with none of its labels.
"""
Results = Mapping[str, Mapping[str, Any]]


def render(results: Results) -> str:
    """Return the page."""
    chosen = ", ".join(name for name, result in results.items() if result["chosen_on"])
    held = ", ".join(name for name, result in results.items() if not result["chosen_on"])
    return "\n".join(
        [
            _HEAD.format(chosen=chosen or "no home", held=held or "no home"),
            _homes(results),
            "## Scores\nMean AUROC over the sets of strangers; in brackets that of the near ones, which it does not "
            "count.\n",
            _scores(results),
            f"## Strangers\nAUROC of `familiarity`, and the share that is flagged with {_CALIBRATION} calibration "
            "rows, in the mean over 200 draws of them.\n",
            _strangers(results),
            "## Rows of the home that are flagged\nOver 200 draws of calibration rows from the other rows: the mean "
            "share, and the quantiles of 5 % and 95 % of the draws.\n",
            _flagged(results),
        ]
    )


def _homes(results: Results) -> str:
    heading = ["home", "labels", "training rows", "other rows", "accuracy", "states after the layers, of 30"]
    rows = [
        [
            *(name, str(of["labels"]), str(of["rows"]["train"]), str(of["rows"]["pool"]), f"{of['accuracy']:.3f}"),
            ", ".join(map(str, of["layers"])),
        ]
        for name, of in results.items()
    ]
    return markdown_table(heading, rows)


def _scores(results: Results) -> str:
    scores = dict.fromkeys(score for result in results.values() for score in result["detection"])
    rows = [[score, *(_mean(of["detection"][score], of["near"]) for of in results.values())] for score in scores]
    return markdown_table(["score", *results], rows)


def _mean(sets: Mapping[str, Mapping[str, float]], near: list[str]) -> str:
    far = [found["auroc"] for title, found in sets.items() if title not in near]
    close = [found["auroc"] for title, found in sets.items() if title in near]
    shown = f"{sum(far) / len(far):.3f}" if far else "-"
    return shown + (f" ({sum(close) / len(close):.3f})" if close else "")


def _strangers(results: Results) -> str:
    titles = dict.fromkeys(title for result in results.values() for title in result["detection"]["familiarity"])
    near = {title for result in results.values() for title in result["near"]}
    rows = []
    for title in titles:
        cells, texts = [f"*{title}*" if title in near else title], 0
        for result in results.values():
            found = result["detection"]["familiarity"].get(title)
            texts = max(texts, int(found["outside"]) if found else 0)
            share = _with_150(result["flags"])["strangers"].get(title)
            cells.append("-" if found is None else f"{found['auroc']:.3f}, {share:.0%}")
        rows.append([cells[0], str(texts), *cells[1:]])
    return markdown_table(["strangers", "texts", *results], rows)


def _with_150(rows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((row for row in rows if row["calibration"] == _CALIBRATION), rows[-1])


def _flagged(results: Results) -> str:
    by_count: dict[tuple[int, float], dict[str, str]] = {}
    for name, result in results.items():
        for row in result["flags"]:
            shown = f"{row['familiar']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
            by_count.setdefault((row["calibration"], row["stated"]), {})[name] = shown
    rows = [
        [str(count), f"{stated:.1%}", *(of.get(name, "-") for name in results)]
        for (count, stated), of in sorted(by_count.items())
    ]
    return markdown_table(["calibration rows", "stated at most", *results], rows)
