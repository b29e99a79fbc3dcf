"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.report.markdown import markdown_table

#: Calibration rows with which the share of inputs that are flagged is shown.
_CALIBRATION = 150
#: Sets that differ from the task's rows in little: no mean counts them.
_NEAR = ("out of scope", "other subjects")
_HEAD = """# Out-of-distribution inputs

`python -m benchmarks.familiarity` writes this page from results.json. SmolLM2-135M with LoRA answers each task, with
the adapters of [experts](../experts/RESULTS.md), seed 0. Inputs of every other set are out-of-distribution. Layers and
the part of the logits were chosen on such sets. {fields}

AUROC is the probability that an out-of-distribution input scores as less familiar than a row of the task.
"""
_MEASURED = """`fields` is the default artifact. It chose nothing, and neither did AG News and CLINC150.
*Other subjects* are exam questions of six subjects of school."""
_ELSEWHERE = "[Guarantees](../../docs/promises.md#distribution-shift) have the default artifact's figures."
Results = Mapping[str, Mapping[str, Any]]


def render(results: Results) -> str:
    return "\n".join(
        [
            _HEAD.format(fields=_MEASURED if "fields" in results else _ELSEWHERE),
            "## Scores\nThe figure is the mean AUROC over sets. The mean over near sets (out of scope, questions "
            "of other subjects) is in brackets.\n",
            _scores(results),
            "## Sets\nThe figures are the AUROC of `familiarity` and the share that is flagged. The share over 200 "
            f"draws of {_CALIBRATION} calibration rows is in brackets.\n",
            _out_of_distribution(results),
            "## Rows of the task that are flagged\nThe figures are the mean over 200 draws of calibration rows, and "
            "the quantiles of 5 % and 95 %.\n",
            _flagged(results),
        ]
    )


def _scores(results: Results) -> str:
    scores = dict.fromkeys(score for result in results.values() for score in result["detection"])
    rows = [[score, *(_mean(of["detection"][score]) for of in results.values())] for score in scores]
    return markdown_table(["score", *results], rows)


def _mean(sets: Mapping[str, Mapping[str, float]]) -> str:
    far = [found["auroc"] for title, found in sets.items() if title not in _NEAR]
    close = [found["auroc"] for title, found in sets.items() if title in _NEAR]
    return f"{sum(far) / len(far):.3f}" + (f" ({sum(close) / len(close):.3f})" if close else "")


def _out_of_distribution(results: Results) -> str:
    rows = []
    for title in dict.fromkeys(title for of in results.values() for title in of["detection"]["familiarity"]):
        cells, texts = [], 0
        for of in results.values():
            found = of["detection"]["familiarity"].get(title)
            if found is None:
                cells.append("-")
                continue
            texts = max(texts, int(found["outside"]))
            own, drawn = (row["out_of_distribution"][title] for row in _own_and_drawn(of["flags"]))
            cells.append(f"{found['auroc']:.3f}, {own:.1%} ({drawn:.1%})")
        rows.append([title, str(texts), *cells])
    return markdown_table(["set", "texts", *results], rows)


def _own_and_drawn(rows: list[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return rows[0], next((row for row in rows[1:] if row["calibration"] == _CALIBRATION), rows[-1])


def _flagged(results: Results) -> str:
    cells: dict[tuple[str, int, float], dict[str, str]] = {}
    for name, of in results.items():
        for row in of["flags"]:
            spread = f" ({row['low']:.1%} to {row['high']:.1%})" if row["kind"] == "drawn" else ""
            key = (row["kind"], row["calibration"], row["stated"])
            cells.setdefault(key, {})[name] = f"{row['familiar']:.1%}{spread}"
    rows = [
        [f"{count}, {kind}", f"{stated:.1%}", *(of.get(name, "-") for name in results)]
        for (kind, count, stated), of in sorted(cells.items())
    ]
    return markdown_table(["calibration rows", "stated at most", *results], rows)
