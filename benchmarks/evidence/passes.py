"""Ten adapters around one trained adapter: their logits, for methods that average over forward passes alone.

``dropout`` draws masks, one for all tokens and rows (Gal and Ghahramani, arXiv 1512.05287, section 4.1; ``dropout``),
with the rate of the training. ``swag`` draws from SWAG's Gaussian (``swag``). ``tfb`` is training-free
Bayesianisation (``tfb``). No label and no figure of a task chose anything of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import DROPOUT, Weights, load_classifier, put, trained_weights
from benchmarks.evidence.dropout import dropout_weights, lora_a_of
from benchmarks.evidence.plan import Training, units
from benchmarks.evidence.splits import deal
from benchmarks.evidence.swag import swag_sample
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.tfb import ANCHORS, isotropic_sample, largest_sigma
from benchmarks.evidence.versions import MEMBER_VERSIONS, has_members, members_path
from laplora.classifier import Classifier
from laplora.files import write_tensors
from laplora.jacobians.contrasts import covered_blocks
from laplora.prompts.examples import Example

MEMBERS = 10
KINDS = ("dropout", "swag", "tfb")
_BATCH = 32

Say = Callable[[str], None]


def run_passes(training: Training, data: Path, say: Say) -> None:
    """Write each unit's members, ``members.KIND``, for the pool and the test rows; what is there stays."""
    folders = {kind: [u for u in units(training) if not has_members(u.folder, kind)] for kind in KINDS}
    folders["swag"] = [unit for unit in folders["swag"] if unit.style == "long"]
    if not any(folders.values()):
        return
    dealt, classifier = deal(training, data), load_classifier(TASKS[training.task])
    for kind, wanted in folders.items():
        for unit in wanted:
            trained = trained_weights(unit)
            put(classifier, trained)
            say(f"{unit.style}: {kind}")
            members = list(_members(kind, classifier, trained, training, dealt.pool, say))
            logits = {
                "pool": torch.stack([_logits_under(classifier, weights, dealt.pool) for weights in members]),
                "test": torch.stack([_logits_under(classifier, weights, dealt.test) for weights in members]),
            }
            version = {"version": str(MEMBER_VERSIONS.get(kind, 1))}
            write_tensors(members_path(unit.folder, kind), logits, version)


def _members(
    kind: str, classifier: Classifier, trained: Weights, training: Training, pool: Sequence[Example], say: Say
) -> Iterator[Weights]:
    """Yield the weights of the members of a kind around what is in the model."""
    draw = torch.Generator().manual_seed(training.seed)
    if kind == "dropout":
        lora_a = lora_a_of(covered_blocks(classifier.model, classifier.readout), trained)
        for weights in dropout_weights(lora_a, p=DROPOUT, members=MEMBERS, seed=training.seed):
            yield trained | weights
    elif kind == "swag":
        moments = load_file(training.folder / "adapters" / "swag.safetensors")
        for _ in range(MEMBERS):
            yield swag_sample(moments, list(trained), draw)
    else:
        sigma = largest_sigma(
            lambda weights: _logits_under(classifier, weights, pool[:ANCHORS]), trained, training.seed
        )
        say(f"sigma {sigma:.4f}")
        for _ in range(MEMBERS):
            yield isotropic_sample(trained, sigma, draw)


def _logits_under(
    classifier: Classifier, weights: Mapping[str, torch.Tensor], examples: Sequence[Example]
) -> torch.Tensor:
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
