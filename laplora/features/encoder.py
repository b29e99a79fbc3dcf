"""Embeddings of inputs by a sentence encoder: the texts of their fields, a line each, without the template's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from laplora.classifier import batches
from laplora.errors import NonFiniteError
from laplora.models.sentence_encoder import SentenceEncoder
from laplora.prompts.cutting import encode_inputs
from laplora.prompts.examples import Example
from laplora.prompts.templates import Cut, PromptTemplate
from laplora.prompts.token_bounds import token_bounds
from laplora.workers import ALONE, Workers


def encoder_template(template: PromptTemplate) -> PromptTemplate:
    """Return what a sentence encoder is given of a template's inputs; a text that is too long is cut as in a prompt."""
    text = "\n".join(f"{{{name}}}" for name in template.fields)
    return PromptTemplate(template.name, template.version, text, choice="{text}", cut=template.cut or Cut())


def embeddings(
    encoder: SentenceEncoder,
    template: PromptTemplate,
    labels: Sequence[str],
    examples: Sequence[Example],
    batch_size: int,
    *,
    track: Callable[[Sequence[list[int]]], Iterator[list[int]]] = iter,
    workers: Workers = ALONE,
) -> dict[str, torch.Tensor]:
    """Return the block ``embedding`` of examples, in order, (rows, width) float32 on the CPU.

    Args:
        template, labels: the task's.
        track, workers: as of ``laplora.Classifier.over_batches``.

    Raises:
        InvalidInputError: an input that the template does not take.
        NonFiniteError: embeddings with NaN or infinity.
    """
    shown, bounds = encoder_template(template), token_bounds(encoder.tokenizer)
    rows = [
        encode_inputs(
            encoder.tokenizer,
            shown,
            example.fields,
            labels,
            max_tokens=encoder.max_tokens,
            truncate=True,
            bounds=bounds,
            side="right",
        )
        for example in examples
    ]
    places, parts = list[int](), list[torch.Tensor]()
    for index in track(workers.share(batches(rows, batch_size))):
        parts.append(encoder.embed([rows[i] for i in index]))
        places += index
    places, parts = workers.joined(places, parts)
    found = torch.cat(parts)[torch.tensor(places).argsort()]
    if not found.isfinite().all():
        raise NonFiniteError(f"the embeddings of {encoder.name!r} hold NaN or infinity: use another sentence encoder")
    return {"embedding": found}
