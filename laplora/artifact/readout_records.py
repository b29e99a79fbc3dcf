"""How an artifact records its read-out: enough to make it again, and to refuse a tokenizer that reads it otherwise."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from laplora.errors import ArtifactIncompatibleError
from laplora.prompts.templates import PromptTemplate, resolve_label_tokens
from laplora.readouts.label_tokens import LabelTokens


class LabelTokensRecord(BaseModel):
    """One token a label."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["label_tokens"]
    verbalizers: tuple[str, ...] = Field(min_length=2, description="text after the prompt that stands for each label")
    token_ids: tuple[int, ...] = Field(min_length=2, description="the one token that each adds to the prompt")

    @property
    def class_count(self) -> int:
        """Number of classes that it reads."""
        return len(self.token_ids)

    def readout(self) -> LabelTokens:
        """Return the read-out."""
        return LabelTokens(self.token_ids)

    def verify(self, name: str, tokenizer: Any, template: PromptTemplate) -> None:
        """Raise ArtifactIncompatibleError where a tokenizer has other tokens for artifact ``name``'s labels."""
        tokens = resolve_label_tokens(tokenizer, template, self.verbalizers)
        if tuple(tokens) != self.token_ids:
            raise ArtifactIncompatibleError(
                f"artifact {name!r}: its labels are tokens {tokens} here, {list(self.token_ids)} there"
            )


#: Every kind of record; with a second kind a union by ``kind``.
ReadOutRecord = LabelTokensRecord
