"""Ten adapters around one trained adapter: their logits, for methods that average over forward passes alone.

``dropout`` draws masks (laplora's own members). ``swag`` draws from SWAG's Gaussian of the long training's last quarter
(Maddox et al., arXiv 1902.02476): diagonal and low rank, half of the variance each. ``tfb`` is training-free
Bayesianisation (Shi et al., arXiv 2412.05723).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import DROPOUT, Weights, load_classifier, put, trained_weights
from benchmarks.evidence.plan import Training, units
from benchmarks.evidence.splits import deal
from benchmarks.evidence.swag import swag_sample
from benchmarks.evidence.tasks import TASKS
from laplora.classifier import Classifier
from laplora.files import write_tensors
from laplora.jacobians.contrasts import covered_blocks
from laplora.predictive.member_adapters import dropout_weights
from laplora.prompts.examples import Example

MEMBERS = 10
KINDS = ("dropout", "swag", "tfb")
_BATCH = 32

#: Training-free Bayesianisation: unlabelled anchor rows, samples of each trial, trials of the bisection, largest sigma.
_ANCHORS, _TRIAL_MEMBERS, _TRIALS, _LARGEST_SIGMA = 100, 4, 8, 0.2
#: How far the NLL of MAP's own answers may rise on the anchor rows, as a share of it: the published code's allowance of
#: 1 % a row for 500 anchor rows.
_ALLOWED_RISE = 5.0

Say = Callable[[str], None]


def run_passes(training: Training, data: Path, say: Say) -> None:
    """Write each unit's members, ``members.KIND``, for the pool and the test rows; what is there stays."""
    folders = {kind: [u for u in units(training) if not members_path(u.folder, kind).is_file()] for kind in KINDS}
    folders["swag"] = [unit for unit in folders["swag"] if unit.style == "long"]
    if not any(folders.values()):
        return
    dealt, classifier = deal(training, data), load_classifier(TASKS[training.task])
    for kind, wanted in folders.items():
        for unit in wanted:
            trained = trained_weights(unit)
            put(classifier, trained)
            members = list(_members(kind, classifier, trained, training, dealt.pool))
            say(f"{unit.style}: {kind}")
            logits = {
                "pool": torch.stack([_logits_under(classifier, weights, dealt.pool) for weights in members]),
                "test": torch.stack([_logits_under(classifier, weights, dealt.test) for weights in members]),
            }
            write_tensors(members_path(unit.folder, kind), logits)


def _members(
    kind: str, classifier: Classifier, trained: Weights, training: Training, pool: Sequence[Example]
) -> Iterator[Weights]:
    """Yield the weights of the members of a kind around what is in the model."""
    draw = torch.Generator().manual_seed(training.seed)
    if kind == "dropout":
        blocks = covered_blocks(classifier.model, classifier.readout)
        for weights in dropout_weights(classifier.model, blocks, p=DROPOUT, members=MEMBERS, seed=training.seed):
            yield trained | weights
    elif kind == "swag":
        moments = load_file(training.folder / "adapters" / "swag.safetensors")
        for _ in range(MEMBERS):
            yield swag_sample(moments, list(trained), draw)
    else:
        sigma = largest_sigma(classifier, trained, pool[:_ANCHORS], training.seed)
        for _ in range(MEMBERS):
            yield isotropic_sample(trained, sigma, draw)


def isotropic_sample(trained: Weights, sigma: float, draw: torch.Generator) -> Weights:
    """Return weights with noise on ``lora_A`` that has the same size in every direction of the update's column space.

    With ``B = U diag(d) V^T`` the update is ``(U diag(d)) (V^T A)``; row i of ``V^T A`` gets noise of deviation
    ``sigma / d_i``, so that the update's noise is sigma along each column of U.
    """
    weights = dict(trained)
    for name, b in trained.items():
        if name.endswith(".lora_B"):
            a = name.removesuffix("B") + "A"
            _, values, right = torch.linalg.svd(b, full_matrices=False)
            noise = torch.randn(trained[a].shape, generator=draw) * sigma / (values[:, None] + 1e-6)
            weights[a] = trained[a] + right.T @ noise
    return weights


def largest_sigma(classifier: Classifier, trained: Weights, anchors: Sequence[Example], seed: int) -> float:
    """Return the largest sigma, by bisection, under which MAP's own answers of the anchor rows stay likely enough.

    The rule is the published one: it needs no labels. A sigma is too large if the mean NLL of MAP's answers rises by
    more than ``_ALLOWED_RISE`` of itself.
    """
    probs = _logits_under(classifier, trained, anchors).double().softmax(1)
    answers = probs.argmax(1, keepdim=True)
    before = float(-probs.gather(1, answers).log().mean())
    low, high = 0.001, _LARGEST_SIGMA
    for _ in range(_TRIALS):
        sigma, draw = (low + high) / 2, torch.Generator().manual_seed(seed)
        samples = [isotropic_sample(trained, sigma, draw) for _ in range(_TRIAL_MEMBERS)]
        mixed = torch.stack([_logits_under(classifier, w, anchors).double().softmax(1) for w in samples]).mean(0)
        after = float(-mixed.gather(1, answers).clamp_min(1e-12).log().mean())
        low, high = (low, sigma) if (after - before) / before > _ALLOWED_RISE else (sigma, high)
    put(classifier, trained)
    return low


def _logits_under(classifier: Classifier, weights: Weights, examples: Sequence[Example]) -> torch.Tensor:
    put(classifier, weights)
    return forward_logits(classifier, examples)


@torch.no_grad()
def forward_logits(classifier: Classifier, examples: Sequence[Example]) -> torch.Tensor:
    """Return the logits of rows, (rows, classes) float32, by forward passes alone."""
    classifier.model.eval()
    logits = torch.zeros(len(examples), classifier.class_count)
    for index, batch in classifier.batched(examples, _BATCH):
        logits[index] = classifier.readout.scores(classifier.model, batch).logits.float()
    return logits


def members_path(folder: Path, kind: str) -> Path:
    """Return where the logits of a unit's members of a kind are kept."""
    return folder / f"members.{kind}.safetensors"
