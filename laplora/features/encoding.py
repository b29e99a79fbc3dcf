"""An input as a row with all that its features are made of. It needs tokenizers alone, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from laplora.features.outputs import HeadSource
from laplora.features.sentence_encoder import TextEncoding
from laplora.prompts.cutting import encode_inputs
from laplora.prompts.model_answers import model_log_probs
from laplora.prompts.option_tokens import encode_options
from laplora.prompts.rows import EncodedRow, Side
from laplora.prompts.templates import PromptTemplate
from laplora.prompts.token_bounds import TokenBounds
from laplora.prompts.token_roles import encode_with_roles


@dataclass(frozen=True)
class FeatureEncoding:
    """How inputs are encoded for features.

    Attributes:
        sources: of the features.
        text: the sentence encoder's tokenizer, which the source ``encoder`` needs.
    """

    sources: tuple[HeadSource, ...] = ()
    text: TextEncoding | None = None

    def row(
        self,
        tokenizer: Any,
        template: PromptTemplate,
        labels: Sequence[str],
        inputs: Mapping[str, Any],
        *,
        max_tokens: int,
        truncate: bool,
        bounds: TokenBounds,
        side: Side,
    ) -> EncodedRow:
        """Return the row of ``encode_inputs``, with what the sources need.

        The sentence encoder's text, and an option's with its question, are cut at their limits whatever ``truncate``.

        Args:
            inputs: the template's fields; or a whole prompt, which is one field's text.

        Raises:
            InvalidInputError: fields that the template does not take, or text that cannot be used; a whole prompt,
                which has no options, where the source ``options`` asks for them.
            TooManyTokensError: too long a prompt, with ``truncate`` off.
            ConfigError: a template whose options cannot be told apart (``laplora.prompts.option_tokens``).
        """
        encode = encode_with_roles if {"frozen", "corrected"} & set(self.sources) else encode_inputs
        row = encode(
            tokenizer, template, inputs, labels, max_tokens=max_tokens, truncate=truncate, bounds=bounds, side=side
        )
        if self.text is not None and "encoder" in self.sources:
            row = replace(row, encoder_ids=self.text.encode(template, labels, inputs))
        if "options" in self.sources:
            row = replace(row, options=encode_options(tokenizer, template, inputs, labels, max_tokens))
        if template.answered:
            row = replace(row, model_log_probs=model_log_probs(inputs, labels))
        return row
