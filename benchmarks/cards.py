"""The share of the four large models that fits on a card of 24, 40 or 80 GB, by count: ``python -m benchmarks.cards``.

No weights and no card are needed: the configurations of ``training/configs`` are counted on the meta device
(``benchmarks.estimate``). ``--publish`` writes the tables into docs/models.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.estimate.architectures import ARCHITECTURES, architecture
from benchmarks.estimate.run import RunEstimate, estimate
from benchmarks.harness import provenance
from training.config import RunConfig, load_config
from training.report.markdown import fill, markdown_table

PAGE = provenance.ROOT / "docs" / "models.md"
CONFIGS = provenance.ROOT / "training" / "configs"
#: The part of each file's name behind ``winogrande-s-``, and what the model is called.
MODELS = {
    "llama2-7b": "Llama-2-7B",
    "llama3-8b": "Llama-3-8B",
    "phi2": "Phi-2",
    "phi3-mini-128k": "Phi-3-mini-128k",
}
#: Tokens of every row that are counted: WinoGrande's longest prompt but few, and the longest that a run takes.
SHORT, LONG = 64, 512
#: Left aside on a card: a CUDA context with its libraries, and the share that an allocator's gaps may take.
CONTEXT_BYTES, GAPS = 2**30, 0.1
#: Bytes of a card of each size that is common.
CARDS = {f"{size} GB": size * 2**30 for size in (24, 40, 80)}


@dataclass(frozen=True)
class Counted:
    """A model's estimates at the short and the long prompt."""

    config: RunConfig
    short: RunEstimate
    long: RunEstimate


def counted(model: str) -> Counted:
    """Return the estimates of a model by the end of its configuration's name."""
    config = load_config(CONFIGS / f"winogrande-s-{model}.yaml")
    settings = architecture(config.base.model)
    short, long = (estimate(config, settings, tokens=tokens, classes=2) for tokens in (SHORT, LONG))
    return Counted(config, short, long)


def usable_bytes(card: str) -> int:
    """Return what tensors may take of a card."""
    return int((CARDS[card] - CONTEXT_BYTES) * (1 - GAPS))


def most_tokens(found: Counted, card: str) -> int:
    """Return the tokens of a training batch, padding included, that a card holds; linear in them between the two."""
    rows = found.config.optimizer.batch_size
    few, many = (one.model_bytes + one.training_bytes for one in (found.short, found.long))
    each = (many - few) / (rows * (LONG - SHORT))
    return max(0, int(rows * SHORT + (usable_bytes(card) - few) / each))


def memory_table(all_counted: Mapping[str, Counted]) -> str:
    """Return gigabytes (10^9 bytes) by model: what is held, and what each step holds beside the weights."""
    rows = []
    for model, found in all_counted.items():
        short, long = found.short, found.long
        rows.append(
            [
                MODELS[model],
                f"{short.model_bytes / 1e9:.2f}",
                f"{short.adapter_parameters / 1e6:.2f}",
                *(f"{one.training_bytes / 1e9:.2f}" for one in (short, long)),
                *(f"{one.fit_bytes / 1e9:.2f}" for one in (short, long)),
                f"{long.answer_bytes / 1e9:.2f}",
                f"{short.posterior_bytes / 1e6:.1f}",
                f"{short.cpu_bytes / 1e9:.2f}",
            ]
        )
    heading = [
        "model",
        "weights, GB",
        "trained, million",
        f"training, 6 x {SHORT}",
        f"6 x {LONG}",
        f"fit, 8 x {SHORT}",
        f"8 x {LONG}",
        f"answers, 4 x {LONG}",
        "posterior's file, MB",
        "a fit's sums on the CPU, GB",
    ]
    return markdown_table(heading, rows)


def cards_table(all_counted: Mapping[str, Counted]) -> str:
    """Return the longest training batch by model and card, in tokens, and in tokens of one of its six rows."""
    rows = []
    for model, found in all_counted.items():
        tokens = [most_tokens(found, card) for card in CARDS]
        rows.append([MODELS[model], *(f"{n:,} ({n // found.config.optimizer.batch_size:,})" for n in tokens)])
    return markdown_table(["model", *CARDS], rows)


def main(arguments: list[str] | None = None) -> int:
    """Count, print and perhaps publish; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cards", description=__doc__)
    parser.add_argument("--publish", action="store_true", help="write the tables into docs/models.md")
    options = parser.parse_args(arguments)
    found = {model: counted(model) for model in MODELS}
    assert {one.config.base.model for one in found.values()} == set(ARCHITECTURES)
    texts = {"memory": memory_table(found), "cards": cards_table(found)}
    for text in texts.values():
        print(text)
    if options.publish:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), "cards", texts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
