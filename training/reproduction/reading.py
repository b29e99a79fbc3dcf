"""What the report's figures say of confidence, and what ours do: sentences computed from the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from training.config.reproduced import REPORTED, TASKS
from training.reproduction.tables import Pair, Record, by_pair, last_step

#: Whose reported figures are read: with Laplace, three of the report's four models are alike.
_READ = "llama2-7b"
#: Rows of SST-2's validation split, from which calibration, test and training rows all come.
_SST2_ROWS = 872
#: Of two answers.
_CHANCE = 0.5


def constant_nll(accuracy: float, confidence: float) -> float:
    """Return the NLL, nats, of two-answer questions that are all answered with one confidence, in (0, 1)."""
    return -accuracy * math.log(confidence) - (1 - accuracy) * math.log1p(-confidence)


def surer_twin(accuracy: float, nll: float) -> float:
    """Return the constant confidence above the accuracy, in (0, 1), that has this NLL; there it grows with confidence.

    Args:
        nll: nats, at least that of a confidence of the accuracy itself.
    """
    low, high = accuracy, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if constant_nll(accuracy, middle) < nll else (low, middle)
    return low


def of_the_report() -> str:
    """Return what the report's means say of its Laplace answers' confidence."""
    laplace = REPORTED[_READ][1]
    accuracy, gap = laplace.accuracy, laplace.ece
    below, above = accuracy - gap, accuracy + gap
    phi = REPORTED["phi3-mini-128k"][1]
    return (
        "The report's figures are for 2,500 steps. Of three of its four models the Laplace answers have an NLL of .67 "
        "to .68 at an accuracy of .72 to .73, with an ECE of .19 to .20. The NLL alone does not say on which side "
        f"confidence is: at an accuracy of {accuracy:.2f} a constant confidence of "
        f"{surer_twin(accuracy, laplace.nll):.2f} has {laplace.nll:.2f} too. With the ECE it does: a constant "
        f"confidence {gap:.2f} below accuracy, {below:.2f}, has an NLL of {constant_nll(accuracy, below):.2f}, as "
        f"reported; one {gap:.2f} above, {above:.2f}, has {constant_nll(accuracy, above):.2f}. So the figures fit a "
        "confidence about that much below accuracy. Three means cannot say whether that is so nearly everywhere. "
        "Those of Phi-3 are nearer: "
        f"{phi.nll:.2f} at {phi.accuracy:.2f}, with an ECE of {phi.ece:.2f}."
    )


def of_ours(records: Sequence[Record]) -> str:
    """Return what our own intervals of confidence − accuracy say at the last checkpoint, as a paragraph and a list."""
    lines = [_gap(pair, seeds) for pair, seeds in by_pair(records).items() if all(_last(r, "laplace") for r in seeds)]
    if not lines:
        return ""
    return "\n".join(
        [
            "**Ours**, confidence − accuracy of the Laplace answers at the last checkpoint, with 95 % intervals:",
            "",
            *lines,
        ]
    )


def caveats(records: Sequence[Record]) -> str:
    """Return what the figures of a page do not show, in words."""
    pairs = by_pair(records)
    said = [
        f"`{model}` has **no skill** on {TASKS[task]}: the interval of its accuracy contains chance, for MAP and for "
        "Laplace, so its calibration there says little."
        for (model, task), seeds in pairs.items()
        if task.startswith("winogrande") and all(_at_chance(one, m) for one in seeds for m in ("map", "laplace"))
    ]
    of_sst2 = [seeds for (_, task), seeds in pairs.items() if task == "sst2"]
    for seeds in of_sst2:
        rows = seeds[0]["rows"]
        left = _SST2_ROWS - rows["calibration"] - rows["test"]
        said.append("SST-2 is a developing task: rules and defaults were chosen on it.")
        if len(seeds) > 1 and seeds[0].get("source", "").endswith("(validation)"):
            said.append(
                f"Its seeds' training rows overlap: of {_SST2_ROWS} rows {_SST2_ROWS} − {rows['calibration']} − "
                f"{rows['test']} = {left} are left to train on, and each seed draws {rows['train']}."
            )
    if any(len(seeds) > 1 for seeds in pairs.values()):
        said.append("The ± holds the randomness of training alone, not that of the calibration and test rows.")
    return " ".join(said)


def _last(record: Record, method: str) -> Mapping[str, Any] | None:
    """Return the scores of a method at the last checkpoint; None where it is not measured so far."""
    found: Mapping[str, Any] | None = record["checkpoints"].get(last_step(record), {}).get(method)
    return found


def _at_chance(record: Record, method: str) -> bool:
    values = _last(record, method)
    if values is None:
        return False
    low, high = values["intervals"]["accuracy"]
    return bool(low <= _CHANCE <= high)


def _gap(pair: Pair, seeds: Sequence[Record]) -> str:
    model, task = pair
    of = [one for record in seeds if (one := _last(record, "laplace"))]
    verdicts = {_verdict(*one["intervals"]["gap"]) for one in of}
    texts = "; ".join("{:+.3f} ({:+.3f} to {:+.3f})".format(one["gap"], *one["intervals"]["gap"]) for one in of)
    verdict = verdicts.pop() if len(verdicts) == 1 else "the trainings differ"
    return f"- `{model}` on {TASKS[task]}: {texts}: {verdict}."


def _verdict(low: float, high: float) -> str:
    if high < 0:
        return "underconfident"
    return "overconfident" if low > 0 else "neither way is shown, for 0 is inside"
