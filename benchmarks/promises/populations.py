"""``empirical`` on answers of the developing tasks' experts, over draws of calibration rows, beside the rule before.

A population is a method's answers of the labelled rows, each made without its label, and those of the test rows. A draw
takes calibration rows from it without replacement, and the threshold that they set judges all other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.experts.cells import Cell
from benchmarks.experts.methods import METHODS
from benchmarks.experts.passes import Passes
from benchmarks.experts.scores import Record
from laplora.decisions.conformal import conformal_threshold, empirical_coverage, prediction_sets
from laplora.decisions.review import accept_threshold
from laplora.files import write_tensors
from laplora.linearised import entropy
from laplora.prompts.examples import label_tensor

ROWS, TARGETS, COVERAGE = (150, 450), (0.05, 0.1), 0.9
#: Experts of which thresholds are set on honest answers.
EXPERTS = ("temperature", "frozen", "encoder", "options")


def counted(scores: torch.Tensor, wrong: torch.Tensor, target: float) -> float | None:
    """Return the threshold of the rule before: the accepted rows and one mistake more stay within the target."""
    values, order = scores.sort()
    accepted = torch.arange(1, len(values) + 1)
    fits = (wrong[order].cumsum(0) + 1 <= target * (accepted + 1) + 1e-9).nonzero()
    return float(values[fits[-1]]) if len(fits) else None


RULES: Mapping[str, Callable[[torch.Tensor, torch.Tensor, float], float | None]] = {
    "empirical": accept_threshold,
    "before": counted,
}


@dataclass(frozen=True)
class Population:
    """Answers of rows whose labels these know nothing of.

    Attributes:
        score: (rows,) float64 entropy, nats; wrong: (rows,) bool.
        transfer: share of wrong answers of the labelled rows and of the test rows, and share of these whose label set
            holds the label, the sets' threshold from the labelled rows.
    """

    score: torch.Tensor
    wrong: torch.Tensor
    transfer: tuple[float, float, float]


def population(cell: Cell, method: str, data: Path, kept: Path) -> Population | None:
    """Return a method's population, its answers kept in a folder; None where it does not apply or was never trained."""
    path = kept / f"{cell.name}.{cell.seed}.{method}.safetensors"
    if not path.is_file():
        rows, source = cell.rows(data), METHODS[method].source
        passes = Passes(cell, rows, print, trains=False)
        if not METHODS[method].applies(cell.task) or (source is not None and not passes.has(source)):
            return None
        answers, _ = METHODS[method].run(passes)
        honest = ~answers.held_out.isnan().any(1)
        probs, of_test = answers.held_out[honest].exp().double(), answers.test.exp().double()
        compared = entropy(probs) if answers.entropies is None else answers.entropies[honest].double()
        known, asked = (label_tensor(some, len(cell.task.labels)) for some in (rows.labelled, rows.test))
        tensors = {"held_probs": probs, "held_labels": known[honest], "held_entropy": compared}
        tensors |= {"test_probs": of_test, "test_labels": asked, "test_entropy": entropy(of_test)}
        write_tensors(path, tensors)
    t = load_file(path)
    sets_from = conformal_threshold(t["held_probs"], t["held_labels"], COVERAGE)
    sets = prediction_sets(t["test_probs"], sets_from, torch.ones_like(t["test_probs"]).bool())
    wrong = [t[f"{part}_probs"].argmax(1) != t[f"{part}_labels"] for part in ("held", "test")]
    rates = [float(one.double().mean()) for one in wrong]
    scores = torch.cat([t["held_entropy"], t["test_entropy"]])
    return Population(scores, torch.cat(wrong), (rates[0], rates[1], empirical_coverage(sets, t["test_labels"])))


def figures(populations: Sequence[Population], rows: int, target: float, draws: int) -> dict[str, Record]:
    """Return by rule the figures of so many draws, dealt to the populations in turn; shares of rows, and of draws.

    ``error`` is the mean error rate of draws that accept something, None where none does.
    """
    judged: dict[str, list[torch.Tensor]] = {}
    for place, one in enumerate(populations):
        g = torch.Generator().manual_seed(place)
        shares: dict[str, list[list[float]]] = {rule: [] for rule in RULES}
        for _ in range(place, draws, len(populations)):
            order = torch.randperm(len(one.score), generator=g)
            fitted, new = order[:rows], order[rows:]
            for rule, threshold in RULES.items():
                limit = threshold(one.score[fitted], one.wrong[fitted], target)
                accepted = one.score[new] <= (-1 if limit is None else limit)
                some = [float(which.double().mean()) for which in (accepted, accepted & one.wrong[new])]
                shares[rule].append([*some, float(limit is None)])
        for rule, lines in shares.items():
            judged.setdefault(rule, []).append(torch.tensor(lines, dtype=torch.float64))
    found = {}
    for rule, parts in judged.items():
        accepted, wrong, empty = torch.cat(parts).T
        some = accepted > 0
        values = {
            "accepted": accepted.mean(),
            "sd": torch.stack([part[:, 0].var() for part in parts]).mean().sqrt(),
            "wrong": wrong.mean(),
            "error": (wrong[some] / accepted[some]).mean(),
            "above": (wrong > target * accepted + 1e-9).double().mean(),
            "empty": empty.mean(),
        }
        found[rule] = {n: round(float(v), 5) if v.isfinite() else None for n, v in values.items()}
    return found
