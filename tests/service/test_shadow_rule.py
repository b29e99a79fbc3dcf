"""The rule of a shadow on simulated answers: how often it is wrong, and that it needs labels of both strata."""

from __future__ import annotations

import itertools
import random
import struct
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from service.feedback.records import StoredPrediction
from service.shadow.compared import compared
from service.shadow.seen import Seen
from service.shadow.terms import Terms

#: Stated error rate of accepted rows: these are about what they err.
RISK = 0.6
_NUMBERS = itertools.count()
TERMS = Terms(artifact="a", share=1.0, better=("accuracy",), confidence=0.9)


def pair(served: float, shadow: float, accepted: bool) -> tuple[StoredPrediction, int]:
    """Return both answers with about these probabilities of the right label, the second one; no two are the same."""
    more = next(_NUMBERS) % 900 / 10_000

    def one(probability: float, beside: StoredPrediction | None) -> StoredPrediction:
        probability += more if probability < 0.5 else -more
        numbers = struct.pack("4d", *(2 * (1 - probability, probability)))
        label = int(probability > 0.5)
        series = ("digest", "pooled")
        return StoredPrediction(
            series, "", 0.0, ("no", "yes"), numbers, 2, 0.1, RISK, accepted, (), label=label, served=beside
        )

    return one(shadow, one(served, None)), 2


def seen(accepts: int, rows: int) -> Seen:
    return Seen(rows=rows, accepted=Counter({(True, True): accepts, (False, False): rows - accepts}))


def test_a_candidate_that_is_no_better_is_rarely_called_so_though_reviewed_rows_have_more_labels() -> None:
    """It is better where the active one asks for a review and as much worse elsewhere; most labels are of reviews."""
    draw, wrong = random.Random(0), 0
    for _ in range(40):
        pairs = []
        for _ in range(300):
            accepted = draw.random() < 0.5
            if accepted and draw.random() < 0.8:
                continue  # a label for a fifth of these
            better = draw.random() < (0.45 if accepted else 0.55)
            pairs.append(pair(*((0.4, 0.6) if better else (0.6, 0.4)), accepted))
        wrong += any(
            compared(TERMS, seen(500, 1000), pairs[:n], whole=True).verdict == "better"
            for n in range(40, len(pairs), 60)
        )
    assert wrong <= 40 * 0.1


def test_it_needs_labels_of_both_and_enough_rows_to_know_how_frequent_each_is() -> None:
    good = [pair(0.4, 0.6, accepted) for accepted in (True, False) * 60]
    assert compared(TERMS, seen(500, 1000), good, whole=True).verdict == "better"
    reviewed = [one for one in good if not one[0].served.accepted]  # type: ignore[union-attr]
    alone = compared(TERMS, seen(500, 1000), reviewed, whole=True)
    assert (alone.verdict, alone.differences[1].value) == ("waiting", None)
    # Accepted rows are none of the first three, which says little of how many there are.
    bad = [pair(0.6, 0.4, True)] * 60
    assert compared(TERMS, seen(0, 3), reviewed + bad, whole=True).verdict == "waiting"
    assert compared(TERMS, seen(500, 1000), good, whole=False).verdict == "undecided", "labels were forgotten"


def test_losses_and_errors_of_several_labels_are_those_of_each() -> None:
    both, right = pair(0.9, 0.6, True)
    both.several = both.served.several = True  # type: ignore[union-attr]
    both.numbers, both.served.numbers = (struct.pack("4d", *(2 * (1 - p, p))) for p in (0.6, 0.9))  # type: ignore[union-attr]
    done = compared(TERMS, seen(1, 1), [(both, right)], whole=True)
    assert (done.served.accuracy, done.shadow.accuracy) == (1.0, 1.0)
    assert done.served.nll == pytest.approx(0.10536, abs=1e-4)
    assert done.shadow.nll == pytest.approx(0.51083, abs=1e-4)


def test_the_same_text_again_says_nothing_new() -> None:
    """Neither for a bound of labels nor for one of decisions, whichever batch it was in."""
    again = [pair(0.4, 0.6, accepted) for accepted in (True, False)] * 60
    done = compared(TERMS, seen(500, 1000), again, whole=True)
    assert (done.labelled, done.verdict) == (2, "waiting")
    found = Seen()
    for i in range(60):
        probs = [0.7 + 1e-7 * i, 0.3 - 1e-7 * i]
        served, shadow = (
            SimpleNamespace(
                label="no", labels_present=None, decision=decision, arrays=SimpleNamespace(probs=np.array(probs))
            )
            for decision in ("review", "accept")
        )
        found.count(served, shadow)  # type: ignore[arg-type]
    assert (found.rows, found.accepted[False, True]) == (60, 60)
    assert compared(TERMS, found, [], whole=True).differences[0].low < 0


def test_it_is_not_better_while_its_accepted_answers_err_more_often_than_stated_or_have_few_labels() -> None:
    good = [pair(0.4, 0.6, accepted) for accepted in (True, False) * 60]
    few, many = ([(replace(one, target_risk=risk), right) for one, right in good] for risk in (0.04, 0.1))
    assert "too few of its accepted answers" in compared(TERMS, seen(500, 1000), few, whole=True).reason
    assert compared(TERMS, seen(500, 1000), many, whole=True).verdict == "better"
    bad = [pair(0.4, 0.4, True) for _ in range(60)]
    done = compared(
        TERMS, seen(500, 1000), [*many, *((replace(one, target_risk=0.1), right) for one, right in bad)], whole=True
    )
    assert (done.verdict, "err more often than stated" in done.reason) == ("waiting", True)
