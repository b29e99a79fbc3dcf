"""How an artifact records its read-out: enough to make it again, and to refuse a tokenizer that reads it otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laplora.errors import ArtifactIncompatibleError, ConfigError
from laplora.linearised import Likelihood
from laplora.prompts.rows import Side
from laplora.prompts.templates import PromptTemplate, resolve_label_sequences, resolve_label_tokens
from laplora.readouts.base import ReadOut
from laplora.readouts.classification_head import ClassificationHead
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens
from laplora.readouts.no_answer import NoAnswer


class LabelTokensRecord(BaseModel):
    """One token a label."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["label_tokens"]
    verbalizers: tuple[str, ...] = Field(min_length=2, description="text after the prompt that stands for each label")
    token_ids: tuple[int, ...] = Field(min_length=2, description="the one token that each adds to the prompt")

    @property
    def class_count(self) -> int:
        return len(self.token_ids)

    def readout(self) -> LabelTokens:
        return LabelTokens(self.token_ids)

    def verify(self, name: str, tokenizer: Any, template: PromptTemplate) -> None:
        """Raise ArtifactIncompatibleError where a tokenizer has other tokens for artifact ``name``'s labels."""
        tokens = resolve_label_tokens(tokenizer, template, self.verbalizers)
        if tuple(tokens) != self.token_ids:
            raise ArtifactIncompatibleError(
                f"artifact {name!r}: its labels are tokens {tokens} here, {list(self.token_ids)} there"
            )


class LabelSequencesRecord(BaseModel):
    """A text a label."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["label_sequences"]
    verbalizers: tuple[str, ...] = Field(min_length=2, description="text after the prompt that stands for each label")
    token_ids: tuple[Annotated[tuple[int, ...], Field(min_length=1)], ...] = Field(
        min_length=2, description="the tokens that each adds to the prompt"
    )
    normalised: bool = Field(description="whether a label's log probability is divided by its number of tokens")

    @model_validator(mode="after")
    def _distinct(self) -> LabelSequencesRecord:
        if len(set(self.token_ids)) != len(self.token_ids):
            raise ValueError("two labels have the same tokens")
        return self

    @property
    def class_count(self) -> int:
        return len(self.token_ids)

    def readout(self) -> LabelSequences:
        return LabelSequences(self.token_ids, self.normalised)

    def verify(self, name: str, tokenizer: Any, template: PromptTemplate) -> None:
        """Raise ArtifactIncompatibleError where a tokenizer has other tokens for artifact ``name``'s labels."""
        tokens = resolve_label_sequences(tokenizer, template, self.verbalizers)
        if tokens != self.token_ids:
            raise ArtifactIncompatibleError(
                f"artifact {name!r}: its labels are tokens {list(tokens)} here, {list(self.token_ids)} there"
            )


class ClassificationHeadRecord(BaseModel):
    """A head of a sequence classification model, trained beside an adapter or alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification_head"]
    class_count: int = Field(ge=2, description="outputs of the head, in the labels' order")
    likelihood: Likelihood = Field(description="bernoulli where each label is right or wrong on its own")
    side: Side = Field(description="side of a row that is padded, and of a long text that is cut")
    trained: tuple[str, ...] = Field(description="module paths of the head's trained linears, that of the logits last")
    alone: bool = Field(description="whether there is no adapter, and head.safetensors in its place")

    def readout(self) -> ClassificationHead:
        return ClassificationHead(self.class_count, self.likelihood, self.side, self.trained)

    def verify(self, name: str, tokenizer: Any, template: PromptTemplate) -> None:
        """Do nothing: of a head's labels no tokenizer knows."""

    @model_validator(mode="after")
    def _consistent(self) -> ClassificationHeadRecord:
        if self.alone and not self.trained:
            raise ValueError("a head alone without a trained linear")
        if len(set(self.trained)) != len(self.trained):
            raise ValueError("a trained linear is named twice")
        return self


class NoAnswerRecord(BaseModel):
    """A model as it is that has no answer of its own for the labels: heads alone answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none"]
    class_count: int = Field(ge=2)
    side: Side = Field(description="side of a row that is padded, and of a long text that is cut")

    def readout(self) -> NoAnswer:
        return NoAnswer(self.class_count, self.side)

    def verify(self, name: str, tokenizer: Any, template: PromptTemplate) -> None:
        """Do nothing: no token stands for a label."""


#: Every kind of record.
ReadOutRecord = Annotated[
    LabelTokensRecord | LabelSequencesRecord | ClassificationHeadRecord | NoAnswerRecord, Field(discriminator="kind")
]


def readout_record(readout: ReadOut, verbalizers: Sequence[str], *, alone: bool = False) -> ReadOutRecord:
    """Return a read-out as an artifact records it; ConfigError for one that no artifact can hold.

    ``alone`` says of a classification head whether the model has no adapter.
    """
    texts = tuple(verbalizers)
    if isinstance(readout, LabelTokens):
        return LabelTokensRecord(kind="label_tokens", verbalizers=texts, token_ids=readout.token_ids)
    if isinstance(readout, LabelSequences):
        return LabelSequencesRecord(
            kind="label_sequences", verbalizers=texts, token_ids=readout.token_ids, normalised=readout.normalised
        )
    if isinstance(readout, ClassificationHead):
        return ClassificationHeadRecord(kind="classification_head", alone=alone, **vars(readout))
    if isinstance(readout, NoAnswer):
        return NoAnswerRecord(kind="none", class_count=readout.class_count, side=readout.side)
    raise ConfigError(f"an artifact cannot hold the read-out {type(readout).__name__}: use one of laplora.readouts")
