"""The records of read-outs: read by their kind, made again, refused where a tokenizer reads the labels otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from transformers import AutoTokenizer

from laplora.artifact.readout_records import LabelSequencesRecord, LabelTokensRecord, ReadOutRecord
from laplora.errors import ArtifactIncompatibleError
from laplora.prompts.templates import TEMPLATES, resolve_label_sequences
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens

READER: TypeAdapter[Any] = TypeAdapter(ReadOutRecord)
VERBALIZERS = [" rather good", " bad"]


def test_a_record_is_read_by_its_kind() -> None:
    fields = {"verbalizers": VERBALIZERS, "token_ids": [[5, 7], [6]], "normalised": False}
    tokens = READER.validate_python({"kind": "label_tokens", "verbalizers": VERBALIZERS, "token_ids": [5, 6]})
    sequences = READER.validate_python({"kind": "label_sequences", **fields})
    assert isinstance(tokens, LabelTokensRecord)
    assert tokens.readout() == LabelTokens((5, 6))
    assert isinstance(sequences, LabelSequencesRecord)
    assert sequences.readout() == LabelSequences(((5, 7), (6,)), normalised=False)
    assert sequences.class_count == 2
    assert READER.validate_json(READER.dump_json(sequences)) == sequences
    for token_ids, message in (([[5], [5]], "two labels have the same tokens"), ([[5], []], "at least 1 item")):
        with pytest.raises(ValidationError, match=message):
            READER.validate_python({"kind": "label_sequences", **fields, "token_ids": token_ids})


def test_another_tokenizers_labels_are_refused(base_model_folder: Path) -> None:
    tokenizer, template = AutoTokenizer.from_pretrained(base_model_folder), TEMPLATES["sentiment"]
    ids = resolve_label_sequences(tokenizer, template, VERBALIZERS)
    assert [len(tokens) for tokens in ids] == [2, 1]
    fields = {"kind": "label_sequences", "verbalizers": VERBALIZERS, "normalised": True}
    READER.validate_python({**fields, "token_ids": ids}).verify("mine", tokenizer, template)
    other = READER.validate_python({**fields, "token_ids": [ids[0], [6]]})
    with pytest.raises(ArtifactIncompatibleError, match=r"artifact 'mine': its labels are tokens .* here, .* there"):
        other.verify("mine", tokenizer, template)
