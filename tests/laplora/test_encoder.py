"""An artifact without its weights encodes and decides as the predictor does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import FinishedRun, reseal

from laplora.encoder import Encoder
from laplora.errors import ArtifactIncompatibleError, ConfigError, InvalidInputError, TooManyTokensError
from laplora.predictor import Predictor

pytestmark = pytest.mark.real

TEXTS = ("a fine film", "word " * 400, "naïve, café; 漢字")


def test_rows_and_decisions_are_the_predictors(sentiment_run: FinishedRun, sentiment_predictor: Predictor) -> None:
    encoder = Encoder.of_folder(sentiment_run.artifact)
    inputs = [{"text": text} for text in TEXTS] + [{"prompt": "Answer:"}]
    rows = [encoder.encode(fields, truncate=True) for fields in inputs]
    assert rows == [sentiment_predictor.encode(fields, truncate=True) for fields in inputs]
    assert rows[1].truncated
    for one in (encoder, sentiment_predictor):
        with pytest.raises(TooManyTokensError):
            one.encode(inputs[1], truncate=False)
        with pytest.raises(InvalidInputError):
            one.encode({"question": "which?"}, truncate=False)
        with pytest.raises(ConfigError):
            one.named("vibes")
    predictions = sentiment_predictor.predict(rows)
    for risk in (None, 0.01, 0.4):
        assert encoder.decided(predictions, risk) == sentiment_predictor.decided(predictions, risk)
    for name in ("recommended", "predictives", "class_count", "max_tokens", "token_bounds", "side"):
        assert getattr(encoder, name) == getattr(sentiment_predictor, name)


def test_another_tokenizer_is_refused(artifact_copy: Path) -> None:
    reseal(artifact_copy, tokenizer_hash="sha256:" + "0" * 64)
    with pytest.raises(ArtifactIncompatibleError, match="another tokenizer"):
        Encoder.of_folder(artifact_copy)
