"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.report.markdown import markdown_table

#: Calibration rows with which the share of strangers that are flagged is shown.
_CALIBRATION = 150
#: Sets that are like the home's rows but for their labels: no mean counts them.
_NEAR = ("out of scope", "as people write")
_HEAD = """# Unfamiliar inputs

Written by `python -m benchmarks.familiarity` from results.json. SmolLM2-135M with LoRA: `sst2` is the default artifact,
the others are the adapters of [experts](../experts/RESULTS.md), seed 0. All else is a stranger to a home. Tokens,
layers and the logits' part were chosen on the other tasks' sets beside `sst2`, `emotion`, `trec` and `domains`, and on
rows as people write. AG News
and CLINC150, which the default artifact is shown, chose nothing. *As people write* are a home's own new rows without
the spaces before their marks: the fewer are flagged, the better.

`familiarity` is the library's, fitted to the training rows. AUROC is the probability that a stranger is stranger than a
row of the home.
"""
Results = Mapping[str, Mapping[str, Any]]


def render(results: Results) -> str:
    """Return the page."""
    return "\n".join(
        [
            _HEAD,
            _homes(results),
            "## Scores\nMean AUROC over the sets of strangers; in brackets that of sets which it does not "
            "count: CLINC150's queries out of scope, rows as people write.\n",
            _scores(results),
            "## Strangers\nAUROC of `familiarity`, and the share that is flagged with the home's own calibration "
            f"rows; in brackets with {_CALIBRATION} of the rows like them, in the mean over 200 draws.\n",
            _strangers(results),
            "## Rows of the home that are flagged\nWith its own calibration rows; and over 200 draws of calibration "
            "rows from them and the new rows: the mean share, and the quantiles of 5 % and 95 % of the draws.\n",
            _flagged(results),
        ]
    )


def _homes(results: Results) -> str:
    heading = ["home", "labels", "training rows", "calibration rows", "new rows", "accuracy", "last tokens", "layers"]
    rows = [
        [
            *(name, str(of["labels"]), *map(str, of["rows"].values()), f"{of['accuracy']:.3f}", str(of["tokens"])),
            ", ".join(map(str, of["layers"])),
        ]
        for name, of in results.items()
    ]
    return markdown_table(heading, rows)


def _scores(results: Results) -> str:
    scores = dict.fromkeys(score for result in results.values() for score in result["detection"])
    rows = [[score, *(_mean(of["detection"][score]) for of in results.values())] for score in scores]
    return markdown_table(["score", *results], rows)


def _mean(sets: Mapping[str, Mapping[str, float]]) -> str:
    far = [found["auroc"] for title, found in sets.items() if title not in _NEAR]
    close = [found["auroc"] for title, found in sets.items() if title in _NEAR]
    return f"{sum(far) / len(far):.3f}" + (f" ({sum(close) / len(close):.3f})" if close else "")


def _strangers(results: Results) -> str:
    rows = []
    for title in dict.fromkeys(title for of in results.values() for title in of["detection"]["familiarity"]):
        cells, texts = [], 0
        for of in results.values():
            found = of["detection"]["familiarity"].get(title)
            if found is None:
                cells.append("-")
                continue
            texts = max(texts, int(found["outside"]))
            own, drawn = (row["strangers"][title] for row in _own_and_drawn(of["flags"]))
            cells.append(f"{found['auroc']:.3f}, {own:.1%} ({drawn:.1%})")
        rows.append([title, str(texts), *cells])
    return markdown_table(["strangers", "texts", *results], rows)


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
