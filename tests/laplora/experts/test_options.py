"""The expert ``options``: a conditional logit over each option's own features, from the passes to answers."""

from __future__ import annotations

import random

import torch
from tiny_classifiers import features_of
from tiny_models import tiny_base
from tiny_tokenizer import tiny_tokenizer

import laplora
from laplora.experts.base import Labelled, Outputs
from laplora.experts.of_head import fit_head
from laplora.head import fold_numbers
from laplora.prompts.examples import Example
from laplora.prompts.templates import TEMPLATES

LETTERS = ("A", "B", "C", "D")
GOOD = ("great", "lovely", "brilliant", "moving", "funny", "superb")
BAD = ("awful", "boring", "clumsy", "terrible", "dull", "weak")


def questions(count: int) -> list[Example]:
    """Return questions of two to four options, of which one is a word of praise, at any place."""
    draw, rows = random.Random(0), []
    for row in range(count):
        choices = [draw.choice(GOOD), *draw.sample(BAD, draw.randint(1, 3))]
        right = choices[0]
        draw.shuffle(choices)
        fields = {"question": f"What is praise, {row}?", "choices": tuple(choices)}
        rows.append(Example(str(row), fields, choices.index(right), len(choices)))
    return rows


def test_answers_follow_the_options_wherever_they_stand() -> None:
    """Labels that are learned and forgotten leave no trace; a random base's letters know nothing of this task."""
    tokenizer = tiny_tokenizer()
    base = tiny_base("llama", vocab_size=len(tokenizer), layers=4, max_position_embeddings=128)
    classifier = laplora.Classifier(base, tokenizer, TEMPLATES["multiple_choice"], LETTERS)

    def outputs_of(examples: list[Example]) -> Outputs:
        return features_of(classifier, "options", examples, 8)

    examples = questions(48)
    outputs, labels = outputs_of(examples), torch.tensor([example.label for example in examples])
    groups = torch.arange(len(examples))
    folds, honest = fold_numbers(len(examples), groups=groups), torch.ones(len(examples), dtype=torch.bool)
    labelled = Labelled(labels, outputs.class_mask, groups, folds, honest)
    first, rest = groups < 40, groups >= 40
    expert = fit_head("options", outputs.take(first), labelled.take(first), "options")
    held_out, answers = expert.held_out, expert.log_probs(outputs)
    assert torch.equal(held_out.isfinite(), outputs.class_mask[first])
    torch.testing.assert_close(answers.exp().sum(1), torch.ones(len(examples)).double())
    assert float((held_out.argmax(1) == labels[first]).double().mean()) > 0.8  # chance is 0.36
    assert float((answers.argmax(1) == labels)[rest].double().mean()) > 0.8
    spread = expert.predictive(outputs)
    torch.testing.assert_close(spread.probs, answers.exp())
    assert (spread.std[outputs.class_mask & (spread.probs < 1)] > 0).all()
    assert not spread.std[~outputs.class_mask].any()

    turned = [
        Example(e.id, e.fields | {"choices": e.fields["choices"][::-1]}, e.class_count - 1 - e.label, e.class_count)
        for e in examples
    ]
    for row, (of_turned, count) in enumerate(
        zip(expert.log_probs(outputs_of(turned)), outputs.class_mask.sum(1).tolist(), strict=True)
    ):
        torch.testing.assert_close(of_turned[:count].flip(0), answers[row, :count], rtol=0, atol=1e-9)

    learned = expert.learn(outputs.take(rest), labelled.take(rest))
    assert not torch.allclose(learned.log_probs(outputs), answers, rtol=0, atol=1e-3)
    back = learned.forget(groups[rest]).log_probs(outputs)
    torch.testing.assert_close(back, answers, rtol=0, atol=1e-6)
