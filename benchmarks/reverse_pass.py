"""The cost of exact Jacobians in forward passes, for each family of decoders: ``python -m benchmarks.reverse_pass``.

Random models of transformers' own classes, all of one size, with LoRA on every linear of their layers. The written-out
reverse pass and automatic differentiation are timed in turns with the forward pass, in processor time of one thread, so
that it may run on a busy machine. ``--publish`` writes the table into docs/models.md; ``--quick`` shows in some seconds
that everything runs.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from benchmarks.harness import provenance
from benchmarks.harness.subject import random_batch
from benchmarks.harness.timing import in_turns, ratio
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.models.lora import lora_layers, lora_of
from laplora.models.quiet import quiet_loading
from laplora.predictive.batch_outputs import AdaptedModel
from laplora.predictive.lora_weights import lora_parameters
from laplora.readouts.label_tokens import LabelTokens
from training.report.markdown import fill, markdown_table

PAGE = provenance.ROOT / "docs" / "models.md"
#: Classes, one more than contrasts.
CLASSES = (2, 4)
WAYS = ("written_out", "automatic")


@dataclass(frozen=True)
class Size:
    """The size of every model, and of the batch; every other row has a quarter of its tokens missing."""

    hidden: int = 256
    intermediate: int = 768
    layers: int = 8
    heads: int = 8
    groups: int = 4
    vocabulary: int = 2000
    rows: int = 4
    tokens: int = 64


QUICK = Size(hidden=32, intermediate=48, layers=2, heads=4, groups=2, rows=2, tokens=8)


def gpt2(size: Size) -> Any:
    """Return GPT-2's configuration, which has names of its own; keys and values are not shared."""
    return transformers.GPT2Config(
        vocab_size=size.vocabulary,
        n_embd=size.hidden,
        n_inner=size.intermediate,
        n_layer=size.layers,
        n_head=size.heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def like_llama(kind: Callable[..., Any], **options: Any) -> Callable[[Size], Any]:
    """Return what makes a configuration of most kinds from a size; ``options`` are that kind's own."""

    def config(size: Size) -> Any:
        return kind(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.groups,
            head_dim=size.hidden // size.heads,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **options,
        )

    return config


#: By name as on the page; those whose pass is not written out come last.
FAMILIES: Mapping[str, Callable[[Size], Any]] = {
    "Llama 2 and 3, SmolLM2": like_llama(transformers.LlamaConfig),
    "Mistral": like_llama(transformers.MistralConfig),
    "Ministral": like_llama(transformers.MinistralConfig),
    "Qwen2, Qwen2.5": like_llama(transformers.Qwen2Config),
    "Qwen3": like_llama(transformers.Qwen3Config),
    "Phi-3, Phi-3.5, Phi-4": like_llama(transformers.Phi3Config),
    "Gemma 1": like_llama(transformers.GemmaConfig),
    "Gemma 3": like_llama(transformers.Gemma3TextConfig),
    "OLMo 2": like_llama(transformers.Olmo2Config),
    "OLMo 3": like_llama(transformers.Olmo3Config),
    "SmolLM3": like_llama(transformers.SmolLM3Config),
    "Granite 3": like_llama(transformers.GraniteConfig, residual_multiplier=0.22, attention_multiplier=0.125),
    "Phi-2": like_llama(transformers.PhiConfig),
    "GPT-2": gpt2,
}


def random_model(family: str, size: Size) -> Any:
    """Return a random float32 model of a family with an adapter of rank 8 on all linears but the output embedding."""
    with quiet_loading():
        from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' and peft's, about attributes and defaults of their own
        base: Any = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](size), dtype=torch.float32)
        adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, adapter)
    for layer in lora_layers(model).values():
        lora_of(layer).up.weight.data.normal_(0, 0.02)
    return model.requires_grad_(False).eval()


def cost(family: str, size: Size, turns: int) -> dict[tuple[int, str], float | None]:
    """Return the median over turns of an answer's Jacobians over a forward pass, by classes and way of computing them.

    None where the reverse pass is not written out.
    """
    model = random_model(family, size)
    readouts = {classes: LabelTokens(tuple(range(100, 100 + classes))) for classes in CLASSES}
    readout = readouts[CLASSES[0]]
    adapted = AdaptedModel(model, lora_parameters(model), readout)
    batch = random_batch(adapted, size.rows, size.tokens, padded=True)

    def forward() -> None:
        with torch.no_grad():
            readout.scores(model, batch)

    functions: dict[str, Callable[[], Any]] = {"forward": forward}
    covered = reverse_pass(model, readout).kind == "written_out"
    for classes, labels in readouts.items():
        blocks = find_blocks(model, classes)
        for way in WAYS if covered else WAYS[1:]:
            functions[f"{classes} {way}"] = lambda b=blocks, r=labels, a=way == "automatic": contrast_jacobians(
                model, batch, r, b, sums=False, automatic=a
            )
    times = in_turns(functions, turns, time.process_time)
    return {
        (classes, way): ratio(times, f"{classes} {way}", "forward").value if f"{classes} {way}" in times else None
        for classes in CLASSES
        for way in WAYS
    }


def table(size: Size, turns: int) -> str:
    """Return the page's table, a row for each family; its cells are printed as they come too."""
    heading = ["family"]
    for classes in CLASSES:
        heading += [f"{classes - 1} contrast{'s' if classes > 2 else ''}: written out", "automatic"]
    rows = []
    for family in FAMILIES:
        values = cost(family, size, turns).values()
        rows.append([family, *("" if value is None else f"{value:.1f}" for value in values)])
        print(" | ".join(rows[-1]), flush=True)
    return markdown_table(heading, rows)


def conditions(size: Size, turns: int) -> str:
    """Return what the figures were measured on, as a sentence of the page."""
    return (
        f"Random models of {size.layers} layers, hidden size {size.hidden}, {size.rows} rows of up to {size.tokens} "
        f"tokens with padding, LoRA of rank 8 on every linear of the layers; processor time of one thread, medians of "
        f"{turns} turns, {provenance.processor()}, {provenance.versions(['torch', 'transformers', 'peft'])}, "
        f"{provenance.today()}."
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or put it on the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reverse_pass",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny models, one turn; nothing published changes")
    parser.add_argument("--publish", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args(arguments)
    if options.publish and options.quick:
        parser.error("--publish needs full size: leave --quick out")
    torch.set_num_threads(1)
    size, turns = (QUICK, 1) if options.quick else (Size(), options.turns)
    costs = table(size, turns)
    texts = {"costs": costs, "conditions": conditions(size, turns)}
    if options.publish:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(fill(page, "reverse_pass", texts), encoding="utf-8")
    else:
        print("", texts["conditions"], costs, sep="\n")


if __name__ == "__main__":
    main()
