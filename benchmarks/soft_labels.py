"""Labels that are probabilities beside their most probable label, as a fit's target: docs/lab-notes.md has the figures.

    python -m benchmarks.soft_labels --data FOLDER   # four minutes of one core

A label is half the hard one and half a teacher's answer: that of the same head, out of fold, on 2,000 rows. FOLDER is
that of ``benchmarks.evidence``; both tasks are development tasks.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.evidence.passes import ENCODER
from benchmarks.evidence.tasks import TASKS
from laplora.features.sentence_encoder import load_sentence_encoder
from laplora.head.fit import fit
from laplora.linearised import cross_entropy, most_probable, targets_of
from laplora.metrics.groups import mean_and_error

#: The teacher's rows, those of them that are fitted, and those that test.
POOL, TRAIN, TEST = 2000, 450, 600


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the cross-entropies of both fits on soft and on hard labels, nats, and their paired difference."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soft_labels", description=(__doc__ or ""))
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    data, encoder = parser.parse_args(arguments).data, load_sentence_encoder(ENCODER)
    torch.set_num_threads(1)
    for name in ("emotion", "trec"):
        task = TASKS[name]
        rows = list(task.read(data))
        random.Random(0).shuffle(rows)
        labels, classes = torch.tensor([int(label) for _, label in rows[:POOL]]), len(task.labels)
        texts = [encoder.encode(task.template, task.labels, fields) for fields, _ in rows[:POOL]]
        parts = [encoder.blocks(texts[first : first + 16]) for first in range(0, POOL, 16)]
        blocks = {block: torch.cat([part[block] for part in parts]) for block in parts[0]}
        teacher = fit(blocks, labels, classes=classes).held_out.exp()
        soft, test = (teacher + targets_of(labels, classes)) / 2, slice(TRAIN, TRAIN + TEST)
        some, asked = ({block: each[rows] for block, each in blocks.items()} for rows in (slice(TRAIN), test))
        by_soft, by_argmax = (
            fit(some, target, classes=classes, honest=False).head.log_probs(asked)
            for target in (soft[:TRAIN], most_probable(soft[:TRAIN]))
        )
        for what, truth in (("soft", soft[test]), ("hard", labels[test])):
            losses = [cross_entropy(answers, truth) for answers in (by_soft, by_argmax)]
            mean, error = mean_and_error(losses[0] - losses[1])
            figures = ", ".join(f"{float(each.mean()):.3f}" for each in losses)
            print(f"{name}, {what} labels: {figures}; difference {mean:.3f} ({error:.3f})", flush=True)


if __name__ == "__main__":
    main()
