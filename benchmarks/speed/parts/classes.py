"""An answer's cost by the number of classes, in plain forwards: probabilities included, and no other work of a server.

Above the limit of classes a few directions are computed in place of all contrasts. The timing does not depend on which
they are, so that the reference rows, whose covariances choose them, are made up here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import load_subject, random_batch, with_classes
from benchmarks.harness.timing import in_turns, ratio
from laplora.jacobians.many_classes import ManyClasses
from laplora.posterior.base import ProjectedJacobians
from laplora.posterior.joint import JointPosterior
from laplora.posterior.many_classes import ManyClassPosterior
from laplora.predictive.kinds import PREDICTIVES, predictive_probs
from laplora.predictive.member_outputs import MemberSet, member_outputs
from laplora.prompts.rows import Batch

#: Classes, and whether an answer of so many has a target.
CLASSES = {2: False, 5: False, 20: False, 77: False, 150: True}
QUICK = (2, 150)
ROWS, TOKENS = 4, 32
#: Forwards that an answer of 150 classes may cost.
LIMIT = 8.0


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the cost of an answer at each number of classes."""
    plain = load_subject("float32")
    functions: dict[str, Callable[[], Any]] = {}
    sizes = QUICK if quick else tuple(CLASSES)
    for classes in sizes:
        members = many_classes(with_classes(plain, classes), ManyClasses())
        batch = random_batch(members, ROWS, TOKENS, padded=True)
        functions[f"forward {classes}"] = partial(forward, members, batch)
        functions[f"answer {classes}"] = partial(answer, members, batch)
    times = in_turns(functions, 3 if quick else 7)
    for classes in sizes:
        yield conditions.record(
            f"classes: an answer of {classes}, {ROWS} x {TOKENS} tokens",
            ratio(times, f"answer {classes}", f"forward {classes}"),
            "a plain forward",
            limit=LIMIT if CLASSES[classes] else None,
        )


def many_classes(members: MemberSet, settings: ManyClasses) -> MemberSet:
    """Return the same with few directions of an answer, where its classes are above the limit."""
    classes, trained = members.readout.class_count, members.trained
    if settings.few(classes):
        return members
    posterior = trained.posterior
    assert isinstance(posterior, JointPosterior)
    size, columns = classes - 1, posterior.factor.shape[1]
    rest = torch.eye(size, dtype=torch.float64)[None, :, :, None].repeat(1, 1, 1, len(posterior.groups))
    reference = ProjectedJacobians(torch.zeros(1, size), torch.zeros(1, size, columns), rest)
    posterior = ManyClassPosterior(posterior, reference, settings.directions)
    return dataclasses.replace(members, trained=dataclasses.replace(trained, posterior=posterior))


def forward(members: MemberSet, batch: Batch) -> Any:
    """Return the class logits of a batch, and no more."""
    with torch.no_grad():
        return members.readout.scores(members.model, batch)


def answer(members: MemberSet, batch: Batch) -> Any:
    """Return the probabilities of a batch under the posterior."""
    outputs = member_outputs(members, batch, {("single", True)})
    means, covariances = outputs.means["single"], outputs.covariances["single"]
    return predictive_probs(PREDICTIVES["laplace"], means, covariances, outputs.class_mask)
