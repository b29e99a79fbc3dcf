"""The libraries' calibrators give whole, finite answers of few rows, and undo what they can express."""

from __future__ import annotations

import warnings

import pytest
import torch

from benchmarks.evidence.calibrators import CALIBRATORS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _installed() -> None:
    for package in ("probmetrics", "betacal", "sklearn"):
        pytest.importorskip(package, reason="the peers are not installed: make peers")


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log probabilities that are true, (rows, classes), and labels drawn from them."""
    of = torch.Generator().manual_seed(seed)
    true = torch.log_softmax(2 * torch.randn(rows, classes, generator=of, dtype=torch.float64), 1)
    return true, torch.multinomial(true.exp(), 1, generator=of)[:, 0]


def nll(log_probs: torch.Tensor, labels: torch.Tensor) -> float:
    return -float(log_probs.gather(1, labels[:, None]).mean())


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize(("rows", "classes", "absent"), [(50, 7, 3), (50, 2, None), (50, 2, 1), (12, 4, 0)])
def test_few_rows_and_an_absent_class_give_finite_rows_that_sum_to_one(
    name: str, rows: int, classes: int, absent: int | None
) -> None:
    log_probs, labels = drawn(rows, classes)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    asked = torch.cat([log_probs, 400 * log_probs])  # the last ones are 0 or 1 in float64
    before = list(warnings.filters)
    answer = CALIBRATORS[name](log_probs, labels)(asked)
    assert warnings.filters == before
    assert answer.shape == asked.shape
    assert answer.dtype == torch.float64
    assert bool(answer.isfinite().all())
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(2 * rows, dtype=torch.float64), rtol=0, atol=1e-12)
    if name in ("beta", "isotonic"):
        assert float(answer.exp().min()) > 0.99 / (rows + 1) / classes


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("classes", [2, 4])
def test_overconfident_and_shifted_answers_come_near_to_the_true_ones(name: str, classes: int) -> None:
    true, labels = drawn(6000, classes)
    shift = torch.linspace(0, 1, classes, dtype=torch.float64)
    given = torch.log_softmax(2.5 * true + shift, 1)
    answer = CALIBRATORS[name](given[:3000], labels[:3000])(given[3000:])
    best, worst = nll(true[3000:], labels[3000:]), nll(given[3000:], labels[3000:])
    # One class against all others cannot express a factor on several classes' logits.
    within = 0.2 if classes > 2 and name in ("beta", "isotonic") else 0.05
    assert nll(answer, labels[3000:]) - best < within * (worst - best)


@pytest.mark.parametrize("name", ["beta", "isotonic"])
def test_a_class_that_no_row_has_keeps_its_share_but_for_the_smoothing(name: str) -> None:
    log_probs, labels = drawn(200, 3)
    labels[labels == 2] = 0
    asked = torch.tensor([[0.3, 0.1, 0.6], [0.6, 0.3, 0.1]], dtype=torch.float64).log()
    answer = CALIBRATORS[name](log_probs, labels)(asked).exp()
    assert float(answer[0, 2]) > 3 * float(answer[1, 2])
