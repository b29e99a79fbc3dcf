"""Support tickets whose labels follow a rule (sys1bench), and a decision model of 3 MB (sparrow-decider) that answers.

Tickets are written from 14 templates. So rows of the same templates say little of new texts: ``apart`` fits on some
templates and tests on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

#: The generator's, for fitted rows and for test rows.
SEEDS = (7, 1000)
#: Rows that are drawn from, and test rows.
FITTED, TESTED = 1600, 500
QUESTIONS = ("queue", "is_angry", "priority")


@dataclass(frozen=True)
class Rows:
    """A question as a request writes it, with rows that the model has answered, and test rows."""

    question: Mapping[str, Any]
    fitted: Sequence[Mapping[str, Any]]
    test: Sequence[Mapping[str, Any]]


def tickets(name: str, *, apart: bool) -> Rows:
    """Return a question's rows: ``state``, ``label``, the model's ``model_probs``, and ``template``.

    Args:
        apart: whether test rows are of other templates than the fitted ones.
    """
    parts = [_answered(seed, count) for seed, count in zip(SEEDS, (FITTED, TESTED), strict=True)]
    question = _question(parts[0][0][0].questions[name])
    chosen = [
        [
            {
                "state": item.state,
                "label": _label(item.questions[name]),
                "model_probs": probs[name],
                "template": "{} {}".format(item.metadata["template_queue"], _template(item)[0]),
            }
            for item, probs in part
            if not apart or _template(item)[1] == bool(number)
        ]
        for number, part in enumerate(parts)
    ]
    return Rows(question, *chosen)


@lru_cache
def _answered(seed: int, count: int) -> list[tuple[Any, dict[str, dict[str, float]]]]:
    """Return tickets, with the model's probability of each label by question."""
    from sparrow_decider import Decider
    from sys1bench.generators import support_tickets  # noqa: F401  it registers itself
    from sys1bench.generators.base import get_generator

    model, found = Decider.load(), []
    for item in get_generator("support_tickets", n=count, seed=seed).generate():
        asked = {name: _question(item.questions[name]) for name in QUESTIONS}
        answers = model.ask(item.state, asked)
        found.append((item, {name: _probs(answers[name]) for name in QUESTIONS}))
    return found


def _template(item: Any) -> tuple[int, bool]:
    """Return which template of its queue a ticket is of, and whether that is the last one of several."""
    from sys1bench.generators.support_tickets import TEMPLATES

    texts = [text for queue, _, text in TEMPLATES if queue == item.metadata["template_queue"]]
    words = set(item.state.lower().split())
    shared = [len(words & set(text.lower().split())) / len(set(text.split())) for text in texts]
    number = shared.index(max(shared))
    return number, len(texts) > 1 and number == len(texts) - 1


def _question(question: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"type": question.type, "instructions": question.instructions}
    if question.type == "choice":
        body["criteria"] = {option.key: option.description for option in question.criteria}
    elif question.type == "score":
        body["criteria"] = [level.description for level in question.criteria]
    return body


def _label(question: Any) -> str:
    truth = question.ground_truth
    return str(truth).lower() if isinstance(truth, bool) else str(truth)


def _probs(answer: Mapping[str, Any]) -> dict[str, float]:
    if "noul" in answer:
        return {"false": 1 - answer["noul"], "true": answer["noul"]}
    return dict(answer["probabilities"])
