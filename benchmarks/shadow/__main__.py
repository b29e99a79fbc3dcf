"""How many labels the rule of a shadow needs, and how often it is wrong: ``python -m benchmarks.shadow``.

It replays the answers that are in benchmarks/evidence/answers, and trains nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from laplora.metrics.anytime import is_above
from service.shadow.compared import MOST_LOSS
from training.report.markdown import markdown_table

ANSWERS, PAGE = Path("benchmarks/evidence/answers"), Path("benchmarks/shadow/RESULTS.md")
#: The active one and the candidate, as benchmarks/evidence names methods.
PAIRS = (("map", "served"), ("logistic_last", "served"), ("temperature", "served"), ("served", "pool"))
LOOKS, CHANCE, SHUFFLES, SURE = range(25, 501, 25), 0.05, 3, 0.95
_HEAD = f"""# A candidate in the shadow

`python -m benchmarks.shadow` writes this page in a minute. It replays test answers of two tasks (customer reviews,
subjectivity; three trainings, five draws), {SHUFFLES} times in random order: 500 rows, all labelled, with a look every
25 labels. A look that calls the candidate better ends the stream. Rows of which the active one is {100 * SURE:g} % sure
are one stratum, the others the other one. A gain is that of the candidate, NLL with losses up to {MOST_LOSS:g} nats.

- **at any time**: the rule of `activate_if_better`, 95 % for all looks together.
- *t at each look*: a one-sided 5 % t-test, as if each look were the only one.
- *t at the end*: the same, looked at once, after 500 labels.

*Equal*: the two answers of a row are swapped at random, so that neither is better. More than 5 % are then too many.
*Labels*: the median of streams that ended. Streams share rows, so a per cent is worth less than their number says.

"""


def streams(active: str, candidate: str) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield differences of loss, of right answers, and the strata of every draw: (rows,) each, in random order."""
    for file in sorted(ANSWERS.glob("*.safetensors")):
        tensors = load_file(file)
        for name in sorted(tensors):
            unit, _, method = name.rpartition("/")
            if method != candidate or f"{unit}/{active}" not in tensors or "/450/" not in name:
                continue
            truth = tensors[f"{unit.rpartition('/')[0]}/test_labels"].long()
            by, beside = (tensors[f"{unit}/{one}"].double() for one in (active, candidate))
            loss, other = (-at.gather(1, truth[:, None])[:, 0].clamp(min=-MOST_LOSS) for at in (by, beside))
            right = (beside.argmax(1) == truth).double() - (by.argmax(1) == truth).double()
            yield loss - other, right, by.exp().amax(1) >= SURE


def ended(gains: torch.Tensor, strata: torch.Tensor, most: float) -> tuple[int | None, int | None, bool]:
    """Return after how many labels both rules end a stream, None if never, and whether the last t-test would."""
    share = float(strata.double().mean())
    first: list[int | None] = [None, None]
    t = 0.0
    for look in LOOKS:
        x = gains[:look]
        if first[0] is None:
            both = x[strata[:look]], x[~strata[:look]]
            sure = is_above(0.0, both, (share, 1 - share), low=-most, high=most, chance=CHANCE)
            first[0] = look if sure else None
        t = float(x.mean() / (x.std() / len(x) ** 0.5).clamp(min=1e-12))
        if first[1] is None and t > 1.645:
            first[1] = look
    return first[0], first[1], t > 1.645


def main() -> int:
    """Write the page."""
    generator, rows = torch.Generator().manual_seed(0), []
    for active, candidate in PAIRS:
        for figure, place, most in (("nll", 0, MOST_LOSS), ("accuracy", 1, 1.0)):
            found = {True: list[tuple[int | None, int | None, bool]](), False: []}
            gain = []
            for columns in streams(active, candidate):
                gains, strata = columns[place], columns[2]
                gain.append(float(gains.mean()))
                for _ in range(SHUFFLES):
                    order = torch.randperm(len(gains), generator=generator)
                    signs = torch.randint(0, 2, (len(gains),), generator=generator) * 2 - 1
                    found[False].append(ended(gains[order], strata[order], most))
                    found[True].append(ended(gains[order] * signs, strata[order], most))
            cells = [f"{active}, {candidate}", figure, f"{sum(gain) / len(gain):+.3f}"]
            for rule in range(3):
                for equal in (False, True):
                    share = sum(bool(one[rule]) for one in found[equal]) / len(found[equal])
                    cells.append(f"{100 * share:.0f}")
                labels = sorted(one[rule] for one in found[False] if one[rule])
                cells.append("500" if rule == 2 else str(labels[len(labels) // 2]) if labels else "–")
            rows.append(cells[:-1])
    heads = ["Active, candidate", "Figure", "Gain"]
    for name in ("**at any time**", "*t at each look*", "*t at the end*"):
        heads += [f"{name}: better, %", "equal, %", "labels"]
    PAGE.write_text(_HEAD + markdown_table(heads[:-1], rows) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
