"""RESULTS.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.report.markdown import markdown_table

_HEAD = """# Classifiers from elsewhere

Written by `python -m benchmarks.own_models` from results.json. Each model was made by plain PEFT and transformers'
Trainer, with one seed. Settings were not tuned. CLINC150's rows and epochs were cut once, for time, after its training
loss was seen and before any figure of calibration or test rows was. `laplora.fit` took the training rows, and
calibration rows that the model had not seen. A commit "with changes" is the one that a case's code was based on; it was
written in by hand, since the benchmark itself was committed later.

The metrics are those of test rows, which chose nothing. \\* answers unless another predictive is named. NLL is in nats,
with its 95 % bootstrap interval. The last column is the share of right labels in the prediction set, of which 90 % are
wanted, and the set's mean size. Where several labels may be right, a row of the metrics is one label of an input.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(_case(result) for result in results.values())])


def _case(result: Mapping[str, Any]) -> str:
    lines = []
    for name, figures in result["predictives"].items():
        star = " *" if name == result["recommended"] else ""
        low, high = figures["intervals"]["nll"]
        sets = figures["sets"]
        auroc = figures["auroc_error"]
        lines.append(
            [
                f"`{name}`{star}",
                f"{figures['accuracy']:.3f}",
                f"{figures['nll']:.3f} ({low:.3f} to {high:.3f})",
                f"{figures['ece']:.3f}",
                f"{figures['brier']:.3f}",
                "-" if auroc is None else f"{auroc:.3f}",
                f"{sets['coverage']:.3f}, {sets['mean_size']:.2f}",
            ]
        )
    heading = ["predictive", "accuracy", "NLL", "ECE", "Brier", "AUROC of mistakes", "coverage, size"]
    rows, served = result["rows"], dict(result["served"])
    asked = served.pop("rows")
    compared = "; ".join(
        f"`{name}` {found['largest_difference']:.0e} at most, decisions and sets "
        + ("the same" if found["decisions_and_sets_alike"] else "**not the same**")
        for name, found in served.items()
    )
    return (
        f"## {result['title']}\n\n"
        f"{rows['train']} training, {rows['calibration']} calibration and {rows['test']} test rows; "
        f"{result['epochs']} epochs; measured on {result['measured']['date']} at {result['measured']['commit']}.\n\n"
        f"{markdown_table(heading, lines)}\n"
        f"At a target risk of 5 %, {_decisions(result['decisions'])}.\n\n"
        f"Behind HTTP, {asked} test rows against the posterior in memory, largest difference of a probability: "
        f"{compared}.\n"
    )


def _decisions(found: Mapping[str, int]) -> str:
    answers = f"{found['accepted']} test rows are accepted"
    labels = "" if found["answers"] == found["accepted"] else f" of {found['answers']} labels"
    share = f" ({found['wrong'] / found['answers']:.1%})" if found["answers"] else ""
    return f"{answers}, with {found['wrong']}{labels} wrong{share}"
