"""``empirical`` on answers of the development tasks' experts, over draws of calibration rows.

A population is a method's answers of the labelled rows, each made without its label, and those of the test rows. A draw
takes calibration rows from it with replacement: the error rate up to the threshold that they set is then that of all of
it, without the noise of rows that judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import load_file

from benchmarks.experts.cells import Cell
from laplora.decisions.conformal import conformal_threshold, empirical_coverage, prediction_sets
from laplora.decisions.review import accept_threshold
from laplora.linearised import entropy

ROWS, TARGETS, COVERAGE = (150, 450), (0.05, 0.1), 0.9


Rule = Callable[[torch.Tensor, torch.Tensor, float], float | None]
_EMPIRICAL: Mapping[str, Rule] = {"empirical": accept_threshold}
#: By method of ``benchmarks.experts`` that the product can serve, the rules that it may have.
METHODS: Mapping[str, Mapping[str, Rule]] = {
    **dict.fromkeys(("temperature", "frozen", "encoder", "options", "pool_unadapted", "pool"), _EMPIRICAL),
    "map": {**_EMPIRICAL, "upper_bound": partial(accept_threshold, guarantee="upper_bound")},
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


def population(cell: Cell, method: str) -> Population | None:
    """Return the population of a method's answers that ``benchmarks.experts`` keeps; None where it has none."""
    path = cell.folder / "methods" / f"{method}.safetensors"
    if not path.is_file():
        return None
    t = load_file(path)
    honest = ~t["held_out"].isnan().any(1)
    held_out, of_test = t["held_out"][honest].exp().double(), t["test"].exp().double()
    compared = t["entropies"][honest].double() if "entropies" in t else entropy(held_out)
    known = t["labels"][honest]
    sets = prediction_sets(
        of_test, conformal_threshold(held_out, known, COVERAGE), torch.ones(of_test.shape, dtype=torch.bool)
    )
    wrong = [held_out.argmax(1) != known, of_test.argmax(1) != t["test_labels"]]
    rates = [float(one.double().mean()) for one in wrong]
    scores = torch.cat([compared, entropy(of_test)])
    return Population(scores, torch.cat(wrong), (rates[0], rates[1], empirical_coverage(sets, t["test_labels"])))


def figures(
    populations: Sequence[Population], rules: Mapping[str, Rule], rows: int, target: float, draws: int
) -> dict[str, dict[str, float | None]]:
    """Return by rule the figures of so many draws, dealt to the populations in turn; shares of rows, and of draws.

    ``error`` is the mean error rate of draws that accept something, None where none does.
    """
    judged: dict[str, list[torch.Tensor]] = {}
    for place, one in enumerate(populations):
        g = torch.Generator().manual_seed(place)
        shares: dict[str, list[list[float]]] = {rule: [] for rule in rules}
        for _ in range(place, draws, len(populations)):
            drawn = torch.randint(len(one.score), (rows,), generator=g)
            for rule, threshold in rules.items():
                limit = threshold(one.score[drawn], one.wrong[drawn], target)
                accepted = one.score <= (-1 if limit is None else limit)
                some = [float(which.double().mean()) for which in (accepted, accepted & one.wrong)]
                shares[rule].append([*some, float(limit is None)])
        for rule, lines in shares.items():
            judged.setdefault(rule, []).append(torch.tensor(lines, dtype=torch.float64))
    by_rule = {}
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
        by_rule[rule] = {n: round(float(v), 5) if v.isfinite() else None for n, v in values.items()}
    return by_rule
