"""An artifact through transformers and peft alone, and how its numbers are compared with a predictor's.

Tolerances. In float32 the two differ by the order of sums: at most 3e-7 in a probability here, 1e-5 is allowed for
other processors. In bfloat16 every activation is rounded to 2^-8, elsewhere with another padding or an unpacked
weight: 0.005 was seen on the tiny model, 0.02 is allowed. The real model has logits of 8 to 22, in steps of 1/16 and
1/8: against the same 4-bit weights in float32 plain transformers is off by up to 0.18 in the difference of two logits
and the predictor by up to 0.41, to either side. A probability's slope is at most 1/4, so 0.15 is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from laplora.artifact.folder import Artifact
from laplora.models.base import locate_base
from laplora.models.quiet import quiet_loading
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from laplora.prompts.templates import render

FLOAT32, BFLOAT16, BFLOAT16_REAL = 1e-5, 0.02, 0.15

SENTIMENT_INPUTS = [
    {"text": "dull"},
    {"text": "A moving, funny and superb film."},
    {"text": "The remake was awful, " + "and then it went on and on, " * 4 + "until it ended."},
    {"text": "ça alors ! 映画 🎬"},
    {"text": "qzx lamp ## of of"},
]


class PlainModel:
    """One adapter of an artifact: one prompt at a time, no padding, the whole vocabulary."""

    def __init__(self, artifact: Artifact, adapter: str = "adapter") -> None:
        manifest = self.manifest = artifact.manifest
        location, dtype = locate_base(manifest.base), getattr(torch, manifest.dtype)
        options: dict[str, Any] = {}
        if manifest.quantization == "nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        with quiet_loading():  # the packages' noise, which the suite would take for failures
            base = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)
            self.model = PeftModel.from_pretrained(base, str(artifact.path / adapter)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(location)

    @torch.no_grad()
    def probs(self, inputs: dict[str, Any], temperature: float = 1.0) -> list[float]:
        """Return the softmax over the label tokens' logits."""
        prompt, classes = render(self.manifest.template.template(), inputs, self.manifest.labels)
        ids = torch.tensor([self.tokenizer.encode(prompt)[-self.manifest.max_tokens :]])
        logits = self.model(input_ids=ids).logits[0, -1].double()[list(self.manifest.readout.token_ids[:classes])]
        return (logits / temperature).softmax(-1).tolist()


def encode(predictor: Predictor, inputs: Sequence[dict[str, Any]]) -> list[EncodedRow]:
    return [predictor.encode(i, truncate=True) for i in inputs]


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
